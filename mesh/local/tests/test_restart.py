"""When a rolling restart is refused, what it reads from a caller's proxy, and the socket that it is asked by."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.local.errors import RefusedError
from mesh.local.events import Event
from mesh.local.restart import check, hosts
from mesh.local.runner_socket import ask, serve
from mesh.topology import Canary, Service, Topology


def food(replicas: int, canary: Canary) -> Topology:
    return Topology({"food": Service("food", replicas=replicas, canary=canary)})


@pytest.mark.parametrize(
    ("replicas", "canary", "cure"),
    [
        (1, Canary(), r"only food-0 takes calls .*Raise services\.food\.replicas to 2 with"),
        (1, Canary(1, 0), r"only food-0 .*replicas to 2, or set services\.food\.canary\.weight above 0"),
        (2, Canary(1, 100), r"only food-canary-0 .*canary\.replicas, or set services\.food\.canary\.weight below 100"),
    ],
)
def test_the_only_instance_that_takes_calls_is_not_restarted_unless_forced(
    replicas: int, canary: Canary, cure: str
) -> None:
    with pytest.raises(RefusedError, match=cure):
        check(food(replicas, canary), "food")
    check(food(replicas, canary), "food", force=True)


@pytest.mark.parametrize(("replicas", "canary"), [(2, Canary()), (1, Canary(1, 50)), (2, Canary(1, 0))])
def test_two_instances_that_take_calls_stand_in_for_each_other(replicas: int, canary: Canary) -> None:
    check(food(replicas, canary), "food")


def test_an_unknown_service_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(RefusedError, match="'foood'; did you mean 'food'"):
        check(food(2, Canary()), "foood", force=True)


def test_a_host_is_healthy_when_every_cluster_that_has_it_says_so() -> None:
    def host(instance: str, port: int, **status: object) -> dict[str, object]:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        return {"hostname": instance, "address": address, "health_status": {"eds_health_status": "HEALTHY", **status}}

    well, sick = host("food-0", 1), host("food-0", 1, failed_active_health_check=True)
    leaving = host("food-1", 4, eds_health_status="DRAINING")
    fine, ejected = host("food-canary-0", 2), host("food-canary-0", 2, failed_outlier_check=True)
    clusters = {
        "cluster_statuses": [
            {"name": "food.stable", "host_statuses": [sick, fine]},
            {"name": "food.canary", "host_statuses": [well, ejected, leaving]},
            {"name": "foodie.stable", "host_statuses": [host("foodie-0", 3)]},
            {"name": "app"},
        ]
    }
    assert hosts(clusters, "food") == {("food-0", 1): False, ("food-canary-0", 2): False, ("food-1", 4): False}
    assert hosts({"cluster_statuses": [{"name": "food.stable", "host_statuses": [well]}]}, "food") == {
        ("food-0", 1): True
    }


async def test_the_runner_answers_on_a_private_socket_and_a_defect_ends_nothing_else(tmp_path: Path) -> None:
    async def restart(service: str, tell: Callable[[Event], None], *, force: bool) -> None:
        tell(Event("ready", f"{service}-0", str(force)))
        if not force:
            raise RefusedError("not now")
        if service == "broken":
            raise KeyError("a defect")

    async def told(service: str, *, force: bool) -> list[tuple[str, str, int]]:
        return [(e.kind, e.text, e.exit_code) async for e in ask(socket, service, force=force)]

    socket = tmp_path / "runner.sock"
    serving = asyncio.create_task(serve(socket, restart))
    async with asyncio.timeout(10):
        while not (socket.exists() and stat.S_IMODE(socket.stat().st_mode) == 0o600):
            await asyncio.sleep(0.01)
        assert (await told("broken", force=True))[1:] == [("failed", "a defect: KeyError('a defect')", 1)]
        assert await told("food", force=True) == [("ready", "True", 0), ("up", "", 0)]
        assert await told("food", force=False) == [("ready", "False", 0), ("failed", "not now", 5)]
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        await told("food", force=True)
