"""An event that its subscriber can never handle: shown, inspected, corrected and replayed by the command, handled once.

The subscriber is of this story, with its own database beside the others; the event comes from food's outbox by food's
own relay.
"""

import asyncio
from contextlib import asynccontextmanager

import sqlalchemy as sa
from nourish.mesh.v1.flags_pb2 import FlagExposed

from mesh.local.postgres import Postgres
from mesh.runtime import database, events
from tests.e2e.harness import wait_until

GROUPS = {"enabled": "treated", "disabled": "control"}


class Experiment:
    """Notes who is in which group. A variant that it does not know is poison to it."""

    @events.subscribe(FlagExposed, group="experiment", attempts=2, backoff=events.Backoff("fixed", first=0.05))
    async def note(self, event, connection):
        """One row for each exposure."""
        values = {"person": event.user, "of": GROUPS[event.variant]}
        await connection.execute(sa.text("INSERT INTO member VALUES (:person, :of)"), values)


@asynccontextmanager
async def experimenting(mesh):
    """The experiment at work; gives what it has noted so far."""
    url = await Postgres(mesh.home, mesh.paths.postgres_sockets).create_database("experiment")
    async with database(url=url, pool=10) as db:
        async with db.transaction() as connection:
            await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS member (person text, of text)"))

        async def members():
            async with db.connection() as connection:
                rows = await connection.execute(sa.text("SELECT person, of FROM member ORDER BY person"))
                return [tuple(row) for row in rows]

        async with events.carry(db, Experiment(), url=mesh.paths.events_url.read_text()):
            yield members


async def test_a_poison_message_is_shown_corrected_and_replayed_and_handled_once(mesh):
    exposed = [FlagExposed(flag="new", variant=v, user=u) for v, u in (("enabeld", "alice"), ("disabled", "bob"))]
    async with experimenting(mesh) as members:
        async with mesh.events(FlagExposed) as seen:
            async with mesh.database("food") as food, food.transaction() as connection:  # as food does
                for event in exposed:
                    await events.publish(connection, event)
            assert {(await seen.next()).user, (await seen.next()).user} == {"alice", "bob"}
        await until(members, [("bob", "control")])
        await asyncio.to_thread(treat, mesh)
        both = [("alice", "treated"), ("bob", "control")]
        await until(members, both)
        await asyncio.to_thread(wait_until, lambda: settled(mesh), what="nothing to be in hand")
        assert await members() == both


async def until(members, wanted):
    """Waits until the experiment has noted that."""
    async with asyncio.timeout(30):
        while await members() != wanted:
            await asyncio.sleep(0.05)


def treat(mesh):
    """What an operator does, who is not shown who it is."""
    (letter,) = wait_until(lambda: mesh.json("events", "dead"), what="the dead letter")
    said = tuple(letter[name] for name in ("event", "group", "attempts", "reason"))
    assert said == ("nourish.mesh.v1.FlagExposed", "experiment", 2, "KeyError: 'enabeld'")
    shown = mesh.run("events", "show", str(letter["id"])).stdout
    assert ('"variant": "enabeld"' in shown, "not shown: user" in shown, "alice" in shown) == (True, True, False)
    replayed = mesh.json("events", "replay", str(letter["id"]), "--set", "variant=enabled")
    assert replayed == {"replayed": [letter["id"]]}


def settled(mesh):
    """Whether the experiment has done all that it was given, and nothing is dead."""
    now = mesh.json("events")
    groups = [lag for lag in now["groups"] if lag["group"] == "experiment"]
    waits = any(lag["waiting"] or lag["in_hand"] or lag["again"] for lag in groups)
    return groups and not waits and now["deadLetters"] == 0
