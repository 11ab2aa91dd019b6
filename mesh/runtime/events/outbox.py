"""Publishing: a row of the outbox, written in the caller's transaction."""

from __future__ import annotations

import json
import uuid

import protovalidate
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime import auth, clock
from mesh.runtime.db import PUBLISHED
from mesh.runtime.environment import environment
from mesh.runtime.events import subjects

CHANNEL = "runtime_outbox"  # what NOTIFY says when there may be rows
_KEY_LOCKS = 0x6576  # any constant: the locks are per database
# Whoever publishes for a key waits for those before to commit: then ids rise in the order of the commits.
_INSERT = """
WITH alone AS MATERIALIZED (SELECT pg_advisory_xact_lock($1, hashtext($2)))
INSERT INTO runtime_outbox (subject, headers, payload) SELECT $3::text, $4::text, $5::bytea FROM alone
"""


async def publish(connection: AsyncConnection, event: Message) -> str:
    """Publishes `event` if the transaction of `connection` commits, and never otherwise; returns the event's id.

    Events with the same key (the contract says which field) are delivered in the order in which their transactions
    commit: a second publisher for a key waits for the first. Who publishes for several keys in one transaction does so
    in one order everywhere, or PostgreSQL ends one of two that wait for each other.

    Raises:
        TypeError: the contract does not mark the message as an event.
        ValueError: it is an event of another service.
        ValidationError: it breaks the field limits of the contract.
    """
    key, name = subjects.key_of(event), event.DESCRIPTOR.full_name
    if environment().service not in ("", subjects.owner(name)) and subjects.owner(name) != subjects.PLATFORM:
        raise ValueError(f"{name} is an event of {subjects.owner(name)}: {environment().service} cannot publish it")
    protovalidate.validate(event)
    id_ = uuid.uuid4().hex
    carried = auth.current.get().headers
    headers = {
        subjects.EVENT_HEADER: id_,
        subjects.KEY_HEADER: subjects.one_line(key),
        subjects.TIME_HEADER: clock.now().isoformat(timespec="milliseconds"),
        **{name: carried[name] for name in auth.OF_REQUEST if name in carried},
    }
    subject = subjects.subject(name, subjects.partition(key))
    values = (_KEY_LOCKS, f"{name}/{key}", subject, json.dumps(headers), event.SerializeToString())
    await connection.exec_driver_sql(_INSERT, values)
    connection.info[PUBLISHED] = True
    return id_
