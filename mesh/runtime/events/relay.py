"""Brings events from the outbox to their stream: one instance of a service does at a time, in order, all others wait.

The one holds an advisory lock as long as its connection lives. One that lost it unawares does no harm: it sends again
what another sends too, under the same id and in the same order.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from mesh.runtime import telemetry
from mesh.runtime.db import Database
from mesh.runtime.events import subjects
from mesh.runtime.events.outbox import CHANNEL

if TYPE_CHECKING:
    from mesh.runtime.events.server import Server

LOCK = 0x72656C6179  # any constant: the lock is per database
BATCH = 256
POLL_SECONDS = 1.0  # a wake-up that was lost costs so much

_NEXT = "SELECT id, subject, headers, payload FROM runtime_outbox ORDER BY id LIMIT $1"
_FORGET = "DELETE FROM runtime_inbox WHERE time < now() - interval '14 days'"  # twice as long as a stream holds events
_FORGET_SECONDS = 3600.0
_SENT = "DELETE FROM runtime_outbox WHERE id = ANY($1)"
_RELAYED = telemetry.Tally("events_relayed_total", "Events that the relay brought to their stream.")
_log = logging.getLogger("mesh.runtime.events")


class Relay:
    """One instance's part in it."""

    def __init__(self, db: Database, server: Server) -> None:
        self._db, self._server = db, server
        self._stopping = False
        self._leads = False
        self._oldest: float | None = None
        telemetry.gauge("events_outbox_lag_seconds", "Since when the oldest event waits for the relay.", self._lag)

    def _lag(self) -> float:
        return time.time() - self._oldest if self._oldest else 0.0

    def stop(self) -> None:
        """Ends `run` when the outbox is empty, or another's business."""
        self._stopping = True
        self._db.published.set()

    async def run(self) -> None:
        """Relays until stopped.

        Raises:
            Exception: an engine is not there; nothing is lost, run it again.
        """
        url = self._db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(url)
        try:
            # To send an event twice is harmless; to wait for the disk to know that it was sent is not worth it.
            await connection.execute("SET synchronous_commit = off")
            await connection.add_listener(CHANNEL, self._heard)
            while not self._leads:
                self._leads = await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK)
                if not self._leads:
                    self._oldest = None
                    if self._stopping:
                        return
                    if await self._woken():
                        await connection.execute(f"NOTIFY {CHANNEL}")
            await self._lead(connection)
        finally:
            self._leads = False
            await connection.close(timeout=POLL_SECONDS)

    async def _lead(self, connection: asyncpg.Connection[Any]) -> None:
        forget = 0.0
        while True:
            if (now := asyncio.get_running_loop().time()) > forget:
                await connection.execute(_FORGET)
                forget = now + _FORGET_SECONDS
            rows = await connection.fetch(_NEXT, BATCH)
            self._oldest = _published(rows[0]) if rows else None
            if rows:
                await self._send(connection, rows)
            elif self._stopping:
                return
            else:
                await self._woken()

    async def _send(self, connection: asyncpg.Connection[Any], rows: list[asyncpg.Record]) -> None:
        """Sends all, those of one partition one by one; what was acknowledged leaves the outbox in any case."""
        by_subject: dict[str, list[asyncpg.Record]] = {}
        for row in rows:
            by_subject.setdefault(row["subject"], []).append(row)
        sent: list[int] = []
        results = await asyncio.gather(
            *(self._in_order(part, sent) for part in by_subject.values()), return_exceptions=True
        )
        if sent:
            await connection.execute(_SENT, sent)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _in_order(self, rows: list[asyncpg.Record], sent: list[int]) -> None:
        for row in rows:
            headers = json.loads(row["headers"])
            await self._server.publish(row["subject"], row["payload"], headers, headers[subjects.EVENT_HEADER])
            sent.append(row["id"])
            _RELAYED.add()

    async def _woken(self) -> bool:
        """Waits until something was published here or, for who leads, anywhere; whether it was."""
        if self._stopping:
            return False
        try:
            await asyncio.wait_for(self._db.published.wait(), POLL_SECONDS)
        except TimeoutError:
            return False
        self._db.published.clear()
        return True

    def _heard(self, connection: Any, pid: int, _channel: str, _payload: object) -> None:
        if self._leads and pid != connection.get_server_pid():
            self._db.published.set()


def _published(row: asyncpg.Record) -> float:
    return datetime.fromisoformat(json.loads(row["headers"])[subjects.TIME_HEADER]).timestamp()
