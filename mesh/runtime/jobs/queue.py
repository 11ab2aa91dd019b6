"""Asking for a job: its row and its place in the queue, both in the caller's transaction."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import datetime, timedelta
from typing import Any

import protovalidate
from google.longrunning.operations_pb2 import Operation
from google.protobuf.message import Message
from pgqueuer import Queries
from pgqueuer.core.tm import TaskManager
from pgqueuer.ports.driver import Driver, NotifyCallback
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import auth
from mesh.runtime.db import keys_of
from mesh.runtime.jobs import store

# Of the call that asks for a job. Not its token: that would be kept, and is over before most jobs begin.
HEADERS = (*auth.OF_REQUEST, auth.USER_HEADER, auth.SCOPES_HEADER)


async def enqueue(
    connection: AsyncConnection,
    argument: Message,
    *,
    run_at: datetime | None = None,
    priority: int = 0,
    key: str = "",
    id: str = "",
) -> str:
    """Asks for a job if the transaction of `connection` commits, and never otherwise; returns its id.

    Args:
        connection: in a transaction, of `Database.transaction`.
        argument: what is to be done; a message that a method is marked for.
        run_at: not before then.
        priority: among those that are due the highest is taken first.
        key: of the jobs of one kind with the same key one runs at a time.
        id: of the job. A second job with the same id is none: the first stands, whatever became of it.

    Raises:
        ValidationError: the argument breaks the field limits of the contract.
    """
    return await _enqueue(connection, argument, owner="", run_at=run_at, priority=priority, key=key, id_=id)


async def begin(connection: AsyncConnection, argument: Message, *, priority: int = 0, key: str = "") -> Operation:
    """As `enqueue`, for the verified user of this call, who may follow and cancel it by the operation's name.

    Raises:
        ServiceError: UNAUTHENTICATED, if there is no user.
        ValidationError: as `enqueue`.
    """
    id_ = await _enqueue(
        connection, argument, owner=auth.user(), run_at=None, priority=priority, key=key, id_=uuid.uuid4().hex
    )
    return Operation(name=operation_name(argument.DESCRIPTOR.full_name, id_))


def operation_name(kind: str, id_: str) -> str:
    """`operations/{service}/{operation}`: the service is that of the argument's package."""
    return f"operations/{kind.split('.')[1]}/{id_}"


async def place(connection: AsyncConnection, id_: str, kind: str, priority: int, delay: timedelta) -> None:
    """Puts a job into the queue, unless it is there."""
    queue = Queries(_Joined(connection))
    await queue.enqueue(kind, id_.encode(), priority, delay, dedupe_key=id_, on_conflict="skip")


async def _enqueue(
    connection: AsyncConnection,
    argument: Message,
    *,
    owner: str,
    run_at: datetime | None,
    priority: int,
    key: str,
    id_: str,
) -> str:
    protovalidate.validate(argument)
    carried = auth.current.get().headers
    kind, id_ = argument.DESCRIPTOR.full_name, id_ or uuid.uuid4().hex
    values = {
        "id": id_,
        "kind": kind,
        "key": key,
        "owner": owner,
        "argument": await keys_of(connection).dump(connection, argument, store.place_of(id_, "argument")),
        "headers": json.dumps({name: carried[name] for name in HEADERS if name in carried}),
        "priority": priority,
        "run_time": run_at,
    }
    delay = await store.insert(connection, values)
    if delay is not None:
        await place(connection, id_, kind, priority, delay)
    return id_


class _Joined(Driver):
    """Lets the library write in a transaction of ours."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def fetch(self, query: str, *args: object) -> list[dict[str, Any]]:
        rows = await self._connection.exec_driver_sql(query, args)
        return [dict(row) for row in rows.mappings()]

    async def execute(self, query: str, *args: object) -> str:
        await self._connection.exec_driver_sql(query, args)
        return ""

    async def notify(self, channel: str, payload: str) -> None:
        await self._connection.exec_driver_sql("SELECT pg_notify($1, $2)", (channel, payload))

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        raise NotImplementedError("a transaction does not listen")

    @property
    def shutdown(self) -> asyncio.Event:
        return asyncio.Event()

    @property
    def tm(self) -> TaskManager:
        return TaskManager()

    async def __aenter__(self) -> _Joined:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None
