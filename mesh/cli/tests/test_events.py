"""A dead letter's whole life by the command: a poison event, shown, the handler mended, replayed, handled."""

import asyncio
import json

import pytest
import sqlalchemy as sa
from nourish.food.v1.food_pb2 import FoodsImported

from mesh.cli.content import corrected, decoded
from mesh.cli.failure import Exit
from mesh.local.nats import write_private
from mesh.local.paths import Paths
from mesh.runtime import database, events
from mesh.runtime.events import dead, subjects


class Planner:
    """Takes events; every one below `least` is poison to it."""

    def __init__(self, least):
        self.least, self.taken = least, []

    @events.subscribe(FoodsImported, group="planner", attempts=2, backoff=events.Backoff("fixed", first=0.01))
    async def take(self, event, connection):
        """Fails, or takes it."""
        if event.foods < self.least:
            raise ValueError(f"{event.foods} foods cannot be planned with")
        self.taken.append(event.foods)


async def carried(postgres_url, events_url, planner, wanted, *published):
    """Publishes, and returns when the planner has taken what is wanted."""
    async with database(url=postgres_url, pool=10) as db, events.carry(db, planner, url=events_url):
        async with db.transaction() as connection:
            await connection.execute(sa.text("SELECT 1"))
            for number in published:
                await events.publish(connection, FoodsImported(data="usda", foods=number))
        async with asyncio.timeout(30):
            while planner.taken != wanted:
                await asyncio.sleep(0.01)


@pytest.fixture
def place(home, events_url):
    """A HOME that knows the events server."""
    paths = Paths(home)
    write_private(paths.events_url, events_url)
    return paths


def test_a_dead_letter_is_shown_and_after_the_handler_was_mended_replayed(
    run, place, postgres_url, events_url, postgres_runner
):
    postgres_runner.run(carried(postgres_url, events_url, Planner(2), [2, 3], 1, 2, 3))
    listed = json.loads(run("events", "dead", "--json").stdout)
    assert [(letter["event"], letter["group"], letter["attempts"], letter["reason"]) for letter in listed] == [
        ("nourish.food.v1.FoodsImported", "planner", 2, "ValueError: 1 foods cannot be planned with")
    ]
    number = str(listed[0]["id"])
    assert "1 foods cannot be planned with" in run("events", "dead").stdout
    shown = json.loads(run("events", "show", number, "--json").stdout)
    assert shown["content"] == {"data": "usda", "foods": "1"}
    assert shown["headers"].keys() == {"nourish-event", "nourish-time"}
    assert '"data": "usda"' in run("events", "show", number).stdout
    assert "1 dead letters" in run("events").stdout

    assert json.loads(run("events", "replay", number, "--json").stdout) == {"replayed": [int(number)]}
    state = json.loads(run("events", "list", "--json").stdout)
    (lag,) = state["groups"]
    assert (lag["group"], lag["event"], lag["waiting"] + lag["in_hand"]) == ("planner", "food-v1-FoodsImported", 1)
    postgres_runner.run(carried(postgres_url, events_url, Planner(0), [1]))
    assert run("events", "dead").stdout == "no dead letters\n"
    assert json.loads(run("events", "--json").stdout)["streams"]["food"]["events"] == 4


def test_all_are_replayed_or_one_is_dropped(run, place, postgres_url, events_url, postgres_runner):
    postgres_runner.run(carried(postgres_url, events_url, Planner(9), [9], 1, 2, 9))
    first, second = (letter["id"] for letter in json.loads(run("events", "dead", "--json").stdout))
    assert run("events", "drop", first).exit_code == 0
    assert run("events", "drop", first).exit_code == Exit.USAGE
    assert run("events", "replay").exit_code == Exit.USAGE
    assert run("events", "replay", "--all", "--set", "foods=1").exit_code == Exit.USAGE
    refused = run("events", "replay", second, "--set", "foods=-1")
    assert (refused.exit_code, "foods: must be greater than or equal to 0" in refused.stderr) == (Exit.USAGE, True)
    assert run("events", "replay", "--all").stdout == f"replayed {second}\n"
    postgres_runner.run(carried(postgres_url, events_url, Planner(0), [2]))


def test_sensitive_fields_are_not_shown_and_unknown_events_are_named():
    from nourish.profile.v1.profile_pb2 import Profile

    shown = decoded("nourish.profile.v1.Profile", Profile(name="profiles/1", weight_kg=80).SerializeToString())
    assert shown == {"content": {"name": "profiles/1"}, "masked": ["weight_kg"]}
    assert "no nourish.food.v1.Gone" in decoded("nourish.food.v1.Gone", b"")["content"]


def test_a_corrected_message_keeps_all_that_was_not_named_and_the_limits_of_its_contract():
    from nourish.profile.v1.profile_pb2 import Profile

    stored = Profile(name="profiles/1", weight_kg=80, allergies=["nuts"], birth_date={"year": 1990, "month": 2})
    unknown = stored.SerializeToString() + b"\xfa\x01\x01x"  # field 31, of a later contract
    sets = ("displayName=Me", "birth_date.day=3", 'allergies=["eggs"]', "activity_level=ACTIVITY_LEVEL_LIGHT")
    new = corrected("nourish.profile.v1.Profile", unknown, sets).SerializeToString()
    assert new.endswith(b"\xfa\x01\x01x")
    stored.birth_date.day = 3
    stored.MergeFrom(Profile(display_name="Me", activity_level=2))
    stored.allergies[:] = ["eggs"]
    assert Profile.FromString(new.removesuffix(b"\xfa\x01\x01x")) == stored
    for wrong in ("weight_kg=1", "weight=80", "weight_kg=heavy", "weight_kg", "=1"):
        with pytest.raises(ValueError):
            corrected("nourish.profile.v1.Profile", unknown, [wrong])
    with pytest.raises(ValueError, match="nothing of it can be kept"):
        corrected("nourish.profile.v1.Profile", b"\xff", ["weight_kg=80"])


def test_a_corrected_event_goes_to_the_partition_of_its_new_key():
    stored = {"id": 7, "event": "nourish.food.v1.FoodsImported", "group": "planner", "reason": "", "attempts": 1}
    first = subjects.subject(stored["event"], subjects.partition("a"))
    letter = dead.DeadLetter(**stored, time=None, subject=first, payload=b"", headers={subjects.EVENT_HEADER: "e"})
    new = letter.corrected(FoodsImported(data="b"))
    assert new.subject == subjects.subject(stored["event"], subjects.partition("b")) != first
    assert new.headers == {subjects.EVENT_HEADER: "e", subjects.KEY_HEADER: "b"}


def test_without_events_or_without_their_server_it_says_what_to_do(run, home):
    asked = run("events", "dead")
    assert (asked.exit_code, "events: {}" in asked.stderr) == (Exit.NOT_RUNNING, True)
    write_private(Paths(home).events_url, "nats://nourish:no@127.0.0.1:1")
    asked = run("events", "list")
    assert (asked.exit_code, "mesh logs nats" in asked.stderr) == (Exit.NOT_RUNNING, True)
