"""All SQL of the log of sagas. It is written in the transactions of a saga's job, which one process at a time can."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

RUNNING, COMPENSATING, SUCCEEDED, COMPENSATED = "running", "compensating", "succeeded", "compensated"
PARKED = "parked"  # what people see of a saga that waits for a human
DOING, DONE, REFUSED, UNDOING, UNDONE = "doing", "done", "refused", "undoing", "undone"


class Row(NamedTuple):
    """A saga as it is stored."""

    id: str
    kind: str
    state: str
    parked: bool
    error: bytes | None
    detail: str | None
    create_time: datetime
    update_time: datetime

    @property
    def shown_state(self) -> str:
        """The state for people."""
        return PARKED if self.parked else self.state


class StepRow(NamedTuple):
    """A step that was begun, as it is stored."""

    number: int
    name: str
    state: str
    tries: int
    response: bytes | None
    detail: str | None
    start_time: datetime
    update_time: datetime


_COLUMNS, _STEP_COLUMNS = ", ".join(Row._fields), ", ".join(StepRow._fields)
_OPEN = sa.text("INSERT INTO runtime_saga (id, kind, state) VALUES (:id, :kind, 'running') ON CONFLICT DO NOTHING")
_GET = sa.text(f"SELECT {_COLUMNS} FROM runtime_saga WHERE id = :id")  # noqa: S608 - constants
_STEPS = sa.text(f"SELECT {_STEP_COLUMNS} FROM runtime_saga_step WHERE saga = :id ORDER BY number")  # noqa: S608
_NEWEST = sa.text(
    f"""
    SELECT {_COLUMNS} FROM runtime_saga
    WHERE CAST(:state AS text) IS NULL OR :state = CASE WHEN parked THEN 'parked' ELSE state END
    ORDER BY create_time DESC, id DESC LIMIT :limit
    """  # noqa: S608 - constants
)
_TURN = sa.text(
    """
    UPDATE runtime_saga
    SET state = :state, error = coalesce(:error, error), detail = coalesce(:detail, detail), update_time = now()
    WHERE id = :id
    """
).bindparams(sa.bindparam("error", type_=sa.LargeBinary), sa.bindparam("detail", type_=sa.Text))
_PARK = sa.text("UPDATE runtime_saga SET parked = :parked, update_time = now() WHERE id = :id")
_FRESH = sa.text("UPDATE runtime_saga_step SET tries = 0 WHERE saga = :id AND state IN ('doing', 'undoing')")
_SETTLE = sa.text(
    """
    UPDATE runtime_saga_step AS step
    SET state = CASE step.state WHEN 'undoing' THEN 'undone' ELSE 'done' END, detail = 'settled by hand',
      update_time = now()
    FROM runtime_saga AS saga
    WHERE saga.id = :id AND saga.parked AND step.saga = saga.id AND step.number = (
      SELECT max(number) FROM runtime_saga_step AS last
      WHERE last.saga = saga.id AND last.state IN ('undoing', CASE saga.state WHEN 'running' THEN 'doing' END,
        CASE saga.state WHEN 'running' THEN 'refused' END)
    )
    RETURNING step.name
    """
)
# Doing it and undoing it are counted each from 1.
_BEGIN = sa.text(
    """
    INSERT INTO runtime_saga_step AS step (saga, number, name, state, tries) VALUES (:id, :number, :name, :state, 1)
    ON CONFLICT (saga, number) DO UPDATE
      SET tries = CASE WHEN step.state = excluded.state THEN step.tries + 1 ELSE 1 END, state = excluded.state,
          update_time = now()
    RETURNING tries
    """
)
# A failure never hides that it was done: who lost the answer to a commit does not know that it happened.
_NOTE = sa.text(
    """
    UPDATE runtime_saga_step
    SET state = :state, response = coalesce(:response, response), detail = :detail, update_time = now()
    WHERE saga = :id AND number = :number AND (state NOT IN ('done', 'undone') OR :state IN ('done', 'undone'))
    """
).bindparams(
    sa.bindparam("response", type_=sa.LargeBinary),
    sa.bindparam("detail", type_=sa.Text),
    sa.bindparam("state", type_=sa.Text),
)


def place_of(id_: str, number: int) -> str:
    """Where the response of a step is stored, as its encryption takes it."""
    return f"runtime_saga_step.response/{id_}/{number}"


async def open_(connection: AsyncConnection, id_: str, kind: str) -> tuple[Row, dict[int, StepRow]]:
    """Makes the log of a saga that begins; the log, with the steps that were begun. One that was parked goes on."""
    await connection.execute(_OPEN, {"id": id_, "kind": kind})
    row = Row(*(await connection.execute(_GET, {"id": id_})).one())
    if row.parked:  # a human had it tried again
        await connection.execute(_PARK, {"id": id_, "parked": False})
        await connection.execute(_FRESH, {"id": id_})
    return row, {step.number: step for step in await steps(connection, id_)}


async def begin(connection: AsyncConnection, id_: str, number: int, name: str, state: str) -> int:
    """Notes that a step is about to be done or undone; how often it was begun so far, this time included."""
    values = {"id": id_, "number": number, "name": name, "state": state}
    return int((await connection.execute(_BEGIN, values)).scalar_one())


async def note(
    connection: AsyncConnection,
    id_: str,
    number: int,
    state: str,
    *,
    response: bytes | None = None,
    detail: str | None = None,
) -> None:
    """Notes what became of it."""
    values = {"id": id_, "number": number, "state": state, "response": response, "detail": detail}
    await connection.execute(_NOTE, values)


async def turn(
    connection: AsyncConnection, id_: str, state: str, error: bytes | None = None, detail: str | None = None
) -> None:
    """Changes the state of the whole."""
    await connection.execute(_TURN, {"id": id_, "state": state, "error": error, "detail": detail})


async def park(connection: AsyncConnection, id_: str) -> None:
    """Leaves it to a human."""
    await connection.execute(_PARK, {"id": id_, "parked": True})


async def settle(connection: AsyncConnection, id_: str) -> str | None:
    """Notes what a parked saga waits for as done, or undone; the name of the step, None if it waits for none."""
    return (await connection.execute(_SETTLE, {"id": id_})).scalar_one_or_none()


async def get(connection: AsyncConnection, id_: str) -> Row | None:
    """One saga."""
    row = (await connection.execute(_GET, {"id": id_})).one_or_none()
    return Row(*row) if row else None


async def steps(connection: AsyncConnection, id_: str) -> list[StepRow]:
    """The steps of a saga that were begun, in their order."""
    return [StepRow(*row) for row in await connection.execute(_STEPS, {"id": id_})]


async def newest(connection: AsyncConnection, state: str | None, limit: int) -> list[Row]:
    """At most `limit` sagas, the newest first; only those that people see in that state, if one is given."""
    return [Row(*row) for row in await connection.execute(_NEWEST, {"state": state, "limit": limit})]
