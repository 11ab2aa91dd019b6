"""Orders that change another service's stock and money by a saga, and tell of it by events."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from mesh.runtime import errors, events, jobs, sagas
from mesh.runtime.db import Database
from mesh.runtime.tests.talk import compiled

pb, pb_grpc = compiled("shop")
ORDERS = "CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, state text NOT NULL)"
STOCK = (
    "CREATE TABLE IF NOT EXISTS movement (number serial, id text NOT NULL, what text NOT NULL)",
    "CREATE TABLE IF NOT EXISTS heard (number serial, id text NOT NULL, what text NOT NULL)",
)
PATH = "/nourish.shop.v1.StockService"
_SOON = jobs.Backoff("fixed", first=0.01, limit=0.01)


class Stock(pb_grpc.StockServiceServicer):
    """Notes each movement once it is made; taking back is another movement."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def Reserve(self, request: Any, context: Any) -> Any:
        return await self._make(request, "reserve")

    async def Charge(self, request: Any, context: Any) -> Any:
        return await self._make(request, "charge")

    async def Ship(self, request: Any, context: Any) -> Any:
        return await self._make(request, "ship")

    async def Release(self, request: Any, context: Any) -> Any:
        return await self._take_back(request, "Reserve", "release")

    async def Refund(self, request: Any, context: Any) -> Any:
        return await self._take_back(request, "Charge", "refund")

    async def _make(self, request: Any, what: str) -> Any:
        if request.refuse:
            raise errors.failed_precondition(f"no {what} for {request.order}")
        await self._note(request.order, what)
        return pb.Changed(text=f"{what} {request.order}")

    async def _take_back(self, request: Any, method: str, what: str) -> Any:
        async with self.db.transaction() as connection:
            if await sagas.undoing(connection, f"{PATH}/{method}", request.undoes, pb.Changed):
                await self._note(request.order, what)
        return pb.Changed(text=what)

    async def _note(self, order: str, what: str) -> None:
        async with self.db.transaction() as connection:
            values = {"id": order, "what": what}
            await connection.execute(sa.text("INSERT INTO movement (id, what) VALUES (:id, :what)"), values)

    @events.subscribe(pb.OrderPlaced, group="stock", attempts=1000, redeliver_after=0.5, backoff=_SOON)
    async def placed(self, event: Any, connection: Any) -> None:
        await self._heard(connection, event.order, "placed")

    @events.subscribe(pb.OrderEnded, group="stock", attempts=1000, redeliver_after=0.5, backoff=_SOON)
    async def ended(self, event: Any, connection: Any) -> None:
        await self._heard(connection, event.order, event.state)

    async def _heard(self, connection: Any, order: str, what: str) -> None:
        await connection.execute(
            sa.text("INSERT INTO heard (id, what) VALUES (:id, :what)"), {"id": order, "what": what}
        )


class Orders(pb_grpc.OrderServiceServicer):
    """Takes an order; the saga reserves, charges, ships, and says how it ended."""

    def __init__(self, db: Database, channel: Any, *, pivot: bool = True, **how: Any) -> None:
        self.db, self.stock, self.pivot = db, pb_grpc.StockServiceStub(channel), pivot
        self.how: dict[str, Any] = {"backoff": _SOON, **how}

    async def Place(self, request: Any, context: Any) -> Any:
        async with self.db.transaction() as connection:
            values = {"id": request.id}
            await connection.execute(sa.text("INSERT INTO orders VALUES (:id, 'placed')"), values)
            await jobs.enqueue(connection, request, id=request.id)
            await events.publish(connection, pb.OrderPlaced(order=request.id))
        return pb.Changed(text=request.id)

    @sagas.saga(pb.Order)
    def place(self) -> Any:
        return (
            sagas.step(self.begin, self.cancel, **self.how),
            sagas.step(self.reserve, self.release, **self.how),
            sagas.step(self.charge, self.refund, **self.how),
            sagas.step(self.ship, pivot=self.pivot, **self.how),
            sagas.step(self.confirm, **self.how),
        )

    async def begin(self, order: Any, call: sagas.Call) -> None:
        """Nothing to do, and something to undo."""

    async def cancel(self, order: Any, call: sagas.Call) -> None:
        await self._end(order, call, "cancelled")

    async def reserve(self, order: Any, call: sagas.Call) -> Any:
        return await self.stock.Reserve(self._change("reserve", order, call))

    async def release(self, order: Any, call: sagas.Call) -> Any:
        return await self.stock.Release(self._change("release", order, call))

    async def charge(self, order: Any, call: sagas.Call) -> Any:
        return await self.stock.Charge(self._change("charge", order, call))

    async def refund(self, order: Any, call: sagas.Call) -> Any:
        return await self.stock.Refund(self._change("refund", order, call))

    async def ship(self, order: Any, call: sagas.Call) -> Any:
        return await self.stock.Ship(self._change("ship", order, call))

    async def confirm(self, order: Any, call: sagas.Call) -> None:
        await self._end(order, call, "confirmed")

    async def _end(self, order: Any, call: sagas.Call, state: str) -> None:
        async with call.transaction() as connection:
            values = {"id": order.id, "state": state}
            await connection.execute(sa.text("UPDATE orders SET state = :state WHERE id = :id"), values)
            await events.publish(connection, pb.OrderEnded(order=order.id, state=state))

    def _change(self, what: str, order: Any, call: sagas.Call) -> Any:
        refuse = order.refused == what
        return pb.Change(order=order.id, request_id=call.request_id, undoes=call.undoes, refuse=refuse)
