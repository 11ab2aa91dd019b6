"""All SQL about the jobs themselves. Whoever writes to a job that runs must hold its newest attempt."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import auth
from mesh.runtime.crypto.datakeys import is_dumped
from mesh.runtime.db import keys_of

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"
CHANGED = "runtime_job"  # what NOTIFY says with the id of a job that has changed
ALONE = "runtime_job_alone"  # the index that two running jobs with one key would break
KEPT = timedelta(days=7)
KEPT_FAILED = timedelta(days=30)


class Row(NamedTuple):
    """A job as it is stored."""

    id: str
    kind: str
    key: str
    owner: str
    argument: bytes
    headers: str
    priority: int
    run_time: datetime
    state: str
    attempt: int
    failures: int
    cancel_requested: bool
    progress: bytes | None
    response: bytes | None
    error: bytes | None
    detail: str | None
    create_time: datetime
    start_time: datetime | None
    update_time: datetime
    end_time: datetime | None

    @property
    def user(self) -> str:
        """For whom it runs; '' for nobody."""
        found: str = json.loads(self.headers).get(auth.USER_HEADER, "")
        return found

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.end_time is not None


_ENCRYPTED = ("argument", "progress", "response")  # if their messages have sensitive fields
_COLUMNS = ", ".join(Row._fields)
_MINE = "id = :id AND attempt = :attempt AND state = 'running'"
# A saga (mesh.runtime.sagas) is a job that must not be left half done, nor forgotten while it waits for a human.
_SAGA = "EXISTS (SELECT FROM runtime_saga WHERE runtime_saga.id = runtime_job.id)"
_PARKED = "EXISTS (SELECT FROM runtime_saga WHERE runtime_saga.id = runtime_job.id AND parked)"
_TELL = f"CASE WHEN owner <> '' THEN pg_notify('{CHANGED}', id) END"  # PostgreSQL commits notifiers one by one
_INSERT = sa.text(
    """
    INSERT INTO runtime_job (id, kind, key, owner, argument, headers, priority, run_time, state)
    VALUES (:id, :kind, :key, :owner, :argument, :headers, :priority, coalesce(:run_time, now()), 'queued')
    ON CONFLICT (id) DO NOTHING
    RETURNING greatest(run_time - now(), interval '0') AS delay
    """
).bindparams(sa.bindparam("run_time", type_=sa.DateTime(timezone=True)))
_START = sa.text(
    f"""
    UPDATE runtime_job
    SET state = 'running', attempt = attempt + 1, failures = failures + (state = 'running')::integer,
        start_time = now(), update_time = now()
    WHERE id = :id AND state IN ('queued', 'running')
    RETURNING {_COLUMNS}
    """  # noqa: S608 - constants
)
_REPORT = sa.text(
    f"""
    UPDATE runtime_job SET progress = coalesce(:progress, progress), update_time = now() WHERE {_MINE}
    RETURNING cancel_requested, {_TELL}
    """  # noqa: S608 - constants
).bindparams(sa.bindparam("progress", type_=sa.LargeBinary))
_LOCK = sa.text(f"SELECT cancel_requested FROM runtime_job WHERE {_MINE} FOR UPDATE")  # noqa: S608 - constants
_RELEASE = sa.text(
    f"""
    UPDATE runtime_job SET state = 'queued', failures = failures + :failed, error = :error, detail = :detail,
      update_time = now(), run_time = now() + :delay
    WHERE {_MINE}
    """  # noqa: S608 - constants
).bindparams(sa.bindparam("delay", type_=sa.Interval))
_END = sa.text(
    f"""
    UPDATE runtime_job SET state = :state, response = :response, error = :error, detail = :detail,
      failures = failures + (:state = 'failed')::integer, update_time = now(), end_time = now()
    WHERE {_MINE}
    RETURNING {_TELL}
    """  # noqa: S608 - constants
).bindparams(sa.bindparam("state", type_=sa.Text))
_CANCEL = sa.text(
    f"""
    UPDATE runtime_job
    SET cancel_requested = true, update_time = now(),
        state = CASE WHEN state = 'queued' AND NOT {_SAGA} THEN 'cancelled' ELSE state END,
        error = CASE WHEN state = 'queued' AND NOT {_SAGA} THEN :error ELSE error END,
        end_time = CASE WHEN state = 'queued' AND NOT {_SAGA} THEN now() END
    WHERE id = :id AND owner = coalesce(:owner, owner) AND end_time IS NULL
    RETURNING {_TELL}
    """  # noqa: S608 - constants
).bindparams(sa.bindparam("owner", type_=sa.Text), sa.bindparam("error", type_=sa.LargeBinary))
_AGAIN = sa.text(
    f"""
    UPDATE runtime_job
    SET state = 'queued', failures = 0, cancel_requested = false, run_time = now(), update_time = now(), end_time = NULL
    WHERE id = :id AND state IN ('failed', 'cancelled')
    RETURNING kind, priority, {_TELL}
    """  # noqa: S608 - constants
)
_GET = sa.text(f"SELECT {_COLUMNS} FROM runtime_job WHERE id = :id")  # noqa: S608 - constants
_PAGE = sa.text(
    f"""
    SELECT {_COLUMNS} FROM runtime_job
    WHERE owner = :owner AND owner <> '' AND (create_time, id) < (coalesce(:time, 'infinity'), coalesce(:after, ''))
    ORDER BY create_time DESC, id DESC LIMIT :limit
    """  # noqa: S608 - constants
).bindparams(sa.bindparam("time", type_=sa.DateTime(timezone=True)), sa.bindparam("after", type_=sa.Text))
_NEWEST = sa.text(
    f"""
    SELECT {_COLUMNS} FROM runtime_job WHERE state = coalesce(:state, state)
    ORDER BY create_time DESC, id DESC LIMIT :limit
    """  # noqa: S608 - constants
).bindparams(sa.bindparam("state", type_=sa.Text))
_FORGET = sa.text(
    f"DELETE FROM runtime_job WHERE id = :id AND end_time IS NOT NULL AND NOT {_PARKED}"  # noqa: S608 - constants
)
_CLEAN = sa.text(
    f"""
    DELETE FROM runtime_job WHERE end_time < now() - :kept AND (state <> 'failed' OR end_time < now() - :kept_failed)
      AND NOT {_PARKED}
    """  # noqa: S608 - constants
).bindparams(sa.bindparam("kept", KEPT, sa.Interval), sa.bindparam("kept_failed", KEPT_FAILED, sa.Interval))
# Jobs that are to be done and have no place in the queue: what the library could not write when a database failed.
_LOST = sa.text(
    """
    SELECT id, kind, priority, greatest(run_time - now(), interval '0') AS delay FROM runtime_job
    WHERE state IN ('queued', 'running') AND NOT EXISTS (
      SELECT FROM pgqueuer WHERE dedupe_key = runtime_job.id AND status IN ('queued', 'picked')
    )
    """
)
_HAS_RUN = sa.text("SELECT EXISTS (SELECT FROM runtime_job WHERE id > :prefix AND id < :prefix || '~')")


def place_of(id_: str, column: str) -> str:
    """Where something of a job is stored, as its encryption takes it."""
    return f"runtime_job.{column}/{id_}"


async def decrypted(connection: AsyncConnection, row: Row) -> Row:
    """The job with what is encrypted in it, of the user who asked for it, in the open."""
    found = {name: stored for name in _ENCRYPTED if is_dumped(stored := getattr(row, name) or b"")}
    keys, opened = keys_of(connection), row._asdict()
    for name, stored in found.items():
        opened[name] = await keys.load(connection, stored, place_of(row.id, name), row.user)
    return Row(**opened)


async def insert(connection: AsyncConnection, values: dict[str, Any]) -> timedelta | None:
    """Adds a job; how long it is until it is due, None if there is one of that id already."""
    row = (await connection.execute(_INSERT, values)).one_or_none()
    return row.delay if row else None


async def start(connection: AsyncConnection, id_: str) -> Row | None:
    """Begins an attempt, if the job is not ended. One that was running was lost with its process: that is a failure.

    Raises:
        IntegrityError: another job with its key runs.
    """
    row = (await connection.execute(_START, {"id": id_})).one_or_none()
    return Row(*row) if row else None


async def report(connection: AsyncConnection, id_: str, attempt: int, progress: bytes | None) -> bool | None:
    """Notes how far it is, and returns whether it shall stop; None if the attempt is no more the newest."""
    row = (await connection.execute(_REPORT, {"id": id_, "attempt": attempt, "progress": progress})).one_or_none()
    return row.cancel_requested if row else None


async def lock(connection: AsyncConnection, id_: str, attempt: int) -> bool | None:
    """Keeps others from the job until the transaction ends; returns as `report`."""
    row = (await connection.execute(_LOCK, {"id": id_, "attempt": attempt})).one_or_none()
    return row.cancel_requested if row else None


async def release(
    connection: AsyncConnection, id_: str, attempt: int, delay: timedelta, failure: tuple[bytes, str] | None
) -> None:
    """Puts it back into the queue, after a failure or because this process stops."""
    error, detail = failure or (None, None)
    values = {"failed": int(failure is not None), "error": error, "detail": detail, "delay": delay}
    await connection.execute(_RELEASE, {"id": id_, "attempt": attempt, **values})


async def end(
    connection: AsyncConnection,
    id_: str,
    attempt: int,
    state: str,
    *,
    response: bytes | None = None,
    error: bytes | None = None,
    detail: str | None = None,
) -> bool:
    """Ends it; whether the attempt was the newest."""
    values = {"state": state, "response": response, "error": error, "detail": detail}
    return (await connection.execute(_END, {"id": id_, "attempt": attempt, **values})).one_or_none() is not None


async def cancel(connection: AsyncConnection, id_: str, error: bytes, owner: str | None = None) -> bool:
    """Ends it if it waits, asks it to stop if it runs; whether there was anything to do."""
    values = {"id": id_, "error": error, "owner": owner}
    return (await connection.execute(_CANCEL, values)).one_or_none() is not None


async def again(connection: AsyncConnection, id_: str) -> tuple[str, int] | None:
    """Makes a failed or cancelled job wait again; its kind and priority, None if it is neither."""
    row = (await connection.execute(_AGAIN, {"id": id_})).one_or_none()
    return (row.kind, row.priority) if row else None


async def get(connection: AsyncConnection, id_: str) -> Row | None:
    """One job."""
    row = (await connection.execute(_GET, {"id": id_})).one_or_none()
    return Row(*row) if row else None


async def page(connection: AsyncConnection, owner: str, after: tuple[datetime, str] | None, limit: int) -> list[Row]:
    """At most `limit` operations of a user, the newest first, from behind (create time, id) on."""
    time, id_ = after or (None, None)
    rows = await connection.execute(_PAGE, {"owner": owner, "time": time, "after": id_, "limit": limit})
    return [Row(*row) for row in rows]


async def newest(connection: AsyncConnection, state: str | None, limit: int) -> list[Row]:
    """At most `limit` jobs, the newest first; only those in that state, if one is given."""
    return [Row(*row) for row in await connection.execute(_NEWEST, {"state": state, "limit": limit})]


async def forget(connection: AsyncConnection, id_: str) -> bool:
    """Deletes a job that is ended; whether it was."""
    return bool((await connection.execute(_FORGET, {"id": id_})).rowcount)


async def clean(connection: AsyncConnection) -> None:
    """Deletes what ended long ago."""
    await connection.execute(_CLEAN)


async def lost(connection: AsyncConnection) -> list[tuple[str, str, int, timedelta]]:
    """Id, kind, priority and delay of the jobs that nobody would ever take."""
    return [(row.id, row.kind, row.priority, row.delay) for row in await connection.execute(_LOST)]


async def has_run(connection: AsyncConnection, prefix: str) -> bool:
    """Whether there is a job whose id begins so."""
    return bool((await connection.execute(_HAS_RUN, {"prefix": prefix})).scalar_one())
