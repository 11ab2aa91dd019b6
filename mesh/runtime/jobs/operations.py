"""Operations (AIP-151): the jobs that a user began, for that user alone.

A service that has any declares an OperationService of its own in its contract, so that the mesh routes to it by name,
and serves `class OperationService(jobs.Operations, operation_pb2_grpc.OperationServiceServicer)`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import datetime

from google.longrunning.operations_pb2 import Operation
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.rpc import status_pb2
from nourish.type.v1 import operations_pb2

from mesh.runtime import auth, errors, pages
from mesh.runtime.db import Database
from mesh.runtime.handlers import Context
from mesh.runtime.jobs import store
from mesh.runtime.jobs.changes import changes
from mesh.runtime.jobs.queue import operation_name
from mesh.runtime.jobs.running import CANCELLED
from mesh.runtime.jobs.store import Row

PAGE = 50
MARGIN_SECONDS = 1.0  # before the deadline, so that the answer arrives within it


class Operations:
    """The methods of a service's OperationService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Context) -> Operation:
        """Returns one operation."""
        return to_operation(await self._get(request.name))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Context
    ) -> operations_pb2.ListOperationsResponse:
        """Lists the caller's operations, the newest first."""
        after = None
        if request.page_token:
            cursor = pages.verify(request.page_token, scope=request)
            after = datetime.fromisoformat(cursor["time"]), str(cursor["id"])
        size = request.page_size or PAGE
        async with self._db.connection() as connection:
            found = await store.page(connection, auth.user(), after, size + 1)
            rows = [await store.decrypted(connection, row) for row in found]
        shown, token = pages.cut(rows, size, _cursor, scope=request)
        return operations_pb2.ListOperationsResponse(operations=map(to_operation, shown), next_page_token=token)

    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Context) -> Empty:
        """Asks an operation to stop."""
        row = await self._get(request.name)
        async with self._db.transaction() as connection:
            await store.cancel(connection, row.id, CANCELLED.SerializeToString(), row.owner)
        return Empty()

    async def DeleteOperation(self, request: operations_pb2.DeleteOperationRequest, context: Context) -> Empty:
        """Forgets an operation that is done."""
        row = await self._get(request.name)
        async with self._db.transaction() as connection:
            if not await store.forget(connection, row.id):
                raise errors.failed_precondition(f"{request.name} is not done: cancel it first, or wait for it")
        return Empty()

    async def WaitOperation(self, request: operations_pb2.WaitOperationRequest, context: Context) -> Operation:
        """Returns an operation once it is done, or as it is when the time is over."""
        asked = request.timeout.ToTimedelta().total_seconds() if request.HasField("timeout") else float("inf")
        left = auth.time_left()
        until = time.monotonic() + max(min(asked, float("inf") if left is None else left - MARGIN_SECONDS), 0.0)
        with changes.of(_id(request.name)) as change:
            while not (row := await self._get(request.name)).ended and (seconds := until - time.monotonic()) > 0:
                await change.next(seconds)
        return to_operation(row)

    async def WatchOperation(
        self, request: operations_pb2.WatchOperationRequest, context: Context
    ) -> AsyncIterator[Operation]:
        """Streams an operation as it is, and again at each change until it is done."""
        last = None
        with changes.of(_id(request.name)) as change:
            while last is None or not last.done:
                now = to_operation(await self._get(request.name))
                if now != last:
                    yield now
                    last = now
                if not now.done:
                    await change.next(float("inf"))

    async def _get(self, name: str) -> Row:
        async with self._db.connection() as connection:
            row = await store.get(connection, _id(name))
            if row is None or row.owner != auth.user() or operation_name(row.kind, row.id) != name:
                raise errors.not_found(name)
            return await store.decrypted(connection, row)


def to_operation(row: Row) -> Operation:
    """What a user sees of a job."""
    operation = Operation(name=operation_name(row.kind, row.id), done=row.ended)
    if row.progress:
        operation.metadata.CopyFrom(Any.FromString(row.progress))
    if row.state == store.SUCCEEDED:
        operation.response.CopyFrom(Any.FromString(row.response) if row.response else _nothing())
    elif row.ended:
        operation.error.CopyFrom(status_pb2.Status.FromString(row.error or b""))
    return operation


def _nothing() -> Any:
    packed = Any()
    packed.Pack(Empty())
    return packed


def _id(name: str) -> str:
    return name.rpartition("/")[2]


def _cursor(row: Row) -> dict[str, str]:
    return {"time": row.create_time.isoformat(), "id": row.id}
