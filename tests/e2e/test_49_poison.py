"""An event that its subscriber can never handle: shown, inspected, corrected and replayed by the command, handled once.

The subscriber is a planner of this story, with its own database beside the others; the event comes from food's outbox
by food's own relay.
"""

import asyncio
from contextlib import asynccontextmanager

import sqlalchemy as sa
from nourish.food.v1.food_pb2 import FoodsImported

from mesh.local.postgres import Postgres
from mesh.runtime import database, events
from tests.e2e.harness import wait_until


class Planner:
    """Notes what share of the foods one is. An import without any foods is poison to it."""

    @events.subscribe(FoodsImported, group="planner", attempts=2, backoff=events.Backoff("fixed", first=0.05))
    async def note(self, event, connection):
        """One row for each import."""
        values = {"data": event.data, "share": 1 / event.foods}
        await connection.execute(sa.text("INSERT INTO share VALUES (:data, :share)"), values)


@asynccontextmanager
async def planning(mesh):
    """The planner at work; gives what it has noted of an import."""
    url = await Postgres(mesh.home, mesh.paths.postgres_sockets).create_database("planner")
    async with database(url=url, pool=10) as db:
        async with db.transaction() as connection:
            await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS share (data text, share float8)"))

        async def noted(data):
            async with db.connection() as connection:
                rows = await connection.execute(sa.text("SELECT share FROM share WHERE data = :data"), {"data": data})
                return list(rows.scalars())

        async with events.carry(db, Planner(), url=mesh.paths.events_url.read_text()):
            yield noted


async def test_a_poison_message_is_shown_corrected_and_replayed_and_handled_once(mesh):
    async with planning(mesh) as noted:
        async with mesh.events(FoodsImported) as seen:
            async with mesh.database("food") as food, food.transaction() as connection:  # as food does
                for published in (FoodsImported(data="poison", foods=0), FoodsImported(data="good", foods=4)):
                    await events.publish(connection, published)
            assert {(await seen.next()).data, (await seen.next()).data} == {"poison", "good"}
        await until(noted, "good")
        await asyncio.to_thread(treat, mesh)
        await until(noted, "poison")
        await asyncio.to_thread(wait_until, lambda: settled(mesh), what="nothing to be in hand")
        assert (await noted("poison"), await noted("good")) == ([0.25], [0.25])


async def until(noted, data):
    """Waits for what the planner makes of an import."""
    async with asyncio.timeout(20):
        while not await noted(data):
            await asyncio.sleep(0.05)


def treat(mesh):
    """What an operator does."""
    (letter,) = wait_until(lambda: mesh.json("events", "dead"), what="the dead letter")
    said = tuple(letter[name] for name in ("event", "group", "attempts", "reason"))
    assert said == ("nourish.food.v1.FoodsImported", "planner", 2, "ZeroDivisionError: division by zero")
    assert mesh.json("events", "show", str(letter["id"]))["content"] == {"data": "poison"}
    replayed = mesh.json("events", "replay", str(letter["id"]), "--set", "foods=4")
    assert replayed == {"replayed": [letter["id"]]}


def settled(mesh):
    """Whether the planner has done all that it was given, and nothing is dead."""
    now = mesh.json("events")
    groups = [lag for lag in now["groups"] if lag["group"] == "planner"]
    waits = any(lag["waiting"] or lag["in_hand"] or lag["again"] for lag in groups)
    return groups and not waits and now["deadLetters"] == 0
