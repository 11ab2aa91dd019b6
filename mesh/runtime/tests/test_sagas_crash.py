"""Kill -9 before and after each write of a call that changes two services by outbox and saga."""

import itertools

import pytest

from mesh.runtime.tests import sagas_crashing as crashing

_numbers = itertools.count()


@pytest.fixture
def place(postgres_server, postgres_runner, events_url, tmp_path):
    """Two services' databases and sockets, and the events server."""
    found = {"events": events_url, "deaths": str(tmp_path / "deaths")}
    for who in crashing.POINTS:
        name = f"saga_{who}_{next(_numbers)}"
        found[who] = postgres_runner.run(postgres_server.create_database(name))
        found[f"{who}_socket"] = f"unix:{tmp_path}/{who}"
    return found


async def test_two_services_killed_after_every_write_lose_and_double_nothing_and_take_back_the_whole(place, forker):
    """`python -m bench saga_kills` does it a thousand times, before and within each write too."""
    whats = {"orders": ("order", *crashing.LOG[1:]), "stock": crashing.WRITES["stock"]}
    points = {who: [f"after {what}" for what in whats[who]] for who in whats}
    driver = crashing.Driver(forker, place)
    await driver.run({who: [(point, 1) for point in points[who]] for who in points})
    assert await driver.faults() == []
    assert set(driver.deaths()) == {point for which in points.values() for point in which}
