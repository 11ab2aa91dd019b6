"""A canary whose contract breaks its callers is refused before any weight, by `mesh rollout` and by `mesh apply`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection

from mesh.cli import main
from mesh.contract import Contract
from mesh.local.events import InstanceState, ProcessState, State, now
from mesh.local.paths import Paths

FOOD = "nourish.food.v1.FoodService"
IDS = ("food-0", "food-canary-0", "nutrition-0")
VALUES = "services:\n  food: { canary: { replicas: 1, weight: 0 } }\n  nutrition: { calls: [food] }\n  profile: {}\n"
ROLLOUT = ("rollout", "food", "--to", "canary")
APPLY = ("apply", "--set", "services.food.canary.weight=10", "--dry-run")


def pool(change: Callable[[descriptor_pb2.FileDescriptorProto], None] | None = None) -> DescriptorPool:
    """The committed contract, or with food's file changed."""
    result = DescriptorPool()
    for original in Contract.read().descriptors.file:
        file = descriptor_pb2.FileDescriptorProto.FromString(original.SerializeToString())
        if change and file.name == "nourish/food/v1/food.proto":
            change(file)
        result.Add(file)
    return result


@contextmanager
def app(socket: Path, descriptors: DescriptorPool | None) -> Iterator[None]:
    """A process that says by reflection what it serves; nothing at all without descriptors."""
    socket.parent.mkdir(exist_ok=True)
    server = grpc.server(ThreadPoolExecutor(2))
    if descriptors:
        reflection.enable_server_reflection([FOOD], server, descriptors)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """The state of a mesh with a canary of food at 0 %, whose control plane is away: no weight can be shifted."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    found = Paths.at(tmp_path)
    found.run.mkdir(mode=0o700)
    found.values.write_text(VALUES)
    up = ProcessState(os.getpid(), True, 0)
    running = tuple(
        InstanceState(i, i.partition("-")[0], "canary" if "canary" in i else "stable", True, 1, "", up, up) for i in IDS
    )
    State(os.getpid(), now(), "ready", "", "", str(found.run), None, up, running).write(found.state)
    yield found
    found.remove_run()


def mesh(paths: Paths, canary: DescriptorPool | None, *arguments: str) -> Result:
    """Runs the command while food's canary serves `canary`, and all others the committed contract."""
    with ExitStack() as stack:
        for id in IDS:
            stack.enter_context(app(paths.app_socket(id), canary if id == "food-canary-0" else pool()))
        return CliRunner().invoke(main, arguments)


def without_get_food(file: descriptor_pb2.FileDescriptorProto) -> None:
    del file.service[0].method[[m.name for m in file.service[0].method].index("GetFood")]


@pytest.mark.parametrize("command", [ROLLOUT, APPLY], ids=["rollout", "apply"])
def test_a_canary_that_breaks_a_caller_is_refused_before_any_weight(paths: Paths, command: tuple[str, ...]) -> None:
    done = mesh(paths, pool(without_get_food), *command)
    assert done.exit_code == 5, done.output
    assert f"food-canary-0 breaks nutrition-0: {FOOD}: the method GetFood is gone" in done.output
    assert not list(paths.rollouts.glob("*.json"))


@pytest.mark.parametrize("command", [ROLLOUT, APPLY], ids=["rollout", "apply"])
def test_a_compatible_canary_gets_as_far_as_the_control_plane(paths: Paths, command: tuple[str, ...]) -> None:
    done = mesh(paths, pool(), *command)
    assert done.exit_code == 3, done.output
    assert "breaks" not in done.output


def test_a_canary_that_says_nothing_is_refused_unless_told_not_to_ask(paths: Paths) -> None:
    done = mesh(paths, None, *APPLY)
    assert done.exit_code == 5
    assert f"food-canary-0 does not say by reflection that it serves {FOOD}" in done.output
    assert mesh(paths, None, *APPLY, "--no-contract-check").exit_code == 3


def test_a_weight_that_was_not_0_is_not_asked_about(paths: Paths) -> None:
    paths.values.write_text(VALUES.replace("weight: 0", "weight: 5"))
    assert mesh(paths, pool(without_get_food), *APPLY).exit_code == 3


def test_a_values_file_that_cannot_take_the_weight_is_refused_before_any_weight(paths: Paths, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("services: { food: {} }\n")
    done = CliRunner().invoke(main, [*ROLLOUT, "--write-values", str(file)])
    assert done.exit_code == 5
    assert "mine.yaml: services.food.canary.weight is not written here: add `weight: 0`" in done.output
    assert not list(paths.rollouts.glob("*.json"))
