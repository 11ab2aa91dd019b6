"""Kill -9 before and after each write of an event's way, and of both engines: nothing lost, doubled or out of order."""

import itertools
import os
import signal
import time

import pytest

from mesh.runtime.tests import crashing

_numbers = itertools.count()


@pytest.fixture(scope="module")
def forks():
    with crashing.forks() as made:
        yield made


@pytest.fixture
def place(postgres_server, postgres_runner, events_url):
    """Two services' databases, and the events server."""
    names = [f"crash_{next(_numbers)}" for _ in "ab"]
    return [*(postgres_runner.run(postgres_server.create_database(name)) for name in names), events_url]


def test_a_process_killed_at_any_write_loses_and_doubles_nothing(forks, place, postgres_runner):
    """One after the other takes up what the one before left, and goes as far as its own point."""
    for number, point in enumerate(crashing.POINTS, start=1):
        nth = 1 if "sent" in point else 2  # what is sent by then is deleted at once
        assert (forks.run(*place, die=point, nth=nth, each=2 * number), point) == (-signal.SIGKILL, point)
    assert forks.run(*place, each=2 * number) == 0
    assert postgres_runner.run(crashing.faults(*place[:2], each=2 * number)) == []


def test_a_process_killed_while_it_buries_a_poison_event_buries_it_once(forks, place, postgres_runner):
    for point in crashing.DEAD_POINTS:
        assert (forks.run(*place, die=point, poison=True), point) == (-signal.SIGKILL, point)
    assert forks.run(*place, poison=True) == 0
    assert postgres_runner.run(crashing.faults(*place[:2], poison=True)) == []
    buried = postgres_runner.run(crashing.dead_letters(place[2]))
    assert buried == [("effects", "Rejected: none at all")] * len(crashing.KEYS)


@pytest.mark.parametrize("which", ["nats_server", "postgres_server"])
def test_an_engine_killed_and_started_again_loses_and_doubles_nothing(which, forks, place, postgres_runner, request):
    engine = request.getfixturevalue(which)
    forks.start(*place, each=20)
    deadline = time.monotonic() + crashing.SECONDS
    while not postgres_runner.run(crashing.rows(place[1], "SELECT 1 FROM effect")):
        assert time.monotonic() < deadline
    os.kill(engine.pid, signal.SIGKILL)
    postgres_runner.run(engine.wait())
    postgres_runner.run(engine.start())
    assert forks.code() == 0
    assert postgres_runner.run(crashing.faults(*place[:2], each=20)) == []
