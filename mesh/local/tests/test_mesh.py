"""A real mesh of one service, started in the background by the runner: what it does when parts of it die."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from mesh.identity.ca import CertificateAuthority
from mesh.identity.rotation import settle
from mesh.local.background import detach, down
from mesh.local.certificates import lagging
from mesh.local.errors import AlreadyRunningError, PortTakenError, RefusedError
from mesh.local.events import Event, InstanceState, State, read_state
from mesh.local.guard import afterwards
from mesh.local.paths import Paths
from mesh.pytest.mesh import free_port

ROOT = Path(__file__).resolve().parents[3]
VALUES = ROOT / "helm" / "values.yaml"
DEADLINE_SECONDS = 60.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Running:
    """The mesh under test, and all events of its start."""

    paths: Paths
    port: int
    events: list[Event] = field(default_factory=list)

    async def up(self) -> None:
        await detach(ROOT, services=("profile",), values=[VALUES], on_event=self.events.append)

    @property
    def state(self) -> State:
        found = read_state(self.paths.state)
        assert found, "the mesh is not running"
        return found

    def instance(self, name: str) -> InstanceState | None:
        return next((i for i in self.state.instances if i.id == name), None)

    def health(self) -> dict[str, int]:
        """Healthy instances by service, as the edge sees them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
            services = json.load(answer)["services"]
        return {name: service["healthyInstances"] for name, service in services.items()}


async def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await asyncio.to_thread(done):
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.05)


def marked(paths: Paths) -> list[int]:
    """The processes of this mesh: those that carry its mark, and its PostgreSQL."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                mark = f"NOURISH_RUN={paths.run}".encode() in (entry / "environ").read_bytes().split(b"\0")
                ours = mark or str(paths.home / "postgres").encode() in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if ours:
                found.append(int(entry.name))
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Running]:
    home = Path(tempfile.mkdtemp(prefix="mesh-", dir="/tmp"))
    port = free_port()
    with pytest.MonkeyPatch.context() as env:
        env.setenv("MESH_HOME", str(home))
        env.setenv("MESH_PORT", str(port))
        running = Running(Paths(home), port)
        with afterwards([sys.executable, "-m", "mesh.cli", "down", "--wipe"], cwd=ROOT, env=os.environ):
            await running.up()
            yield running
    shutil.rmtree(home, ignore_errors=True)


async def test_the_edge_serves_as_soon_as_up_returns(mesh: Running) -> None:
    assert mesh.health()["profile"] == 1
    assert mesh.events[-1].kind == "up"
    assert mesh.events[-1].text == f"http://127.0.0.1:{mesh.port}"


async def test_only_what_was_asked_for_runs(mesh: Running) -> None:
    assert {i.service for i in mesh.state.instances} == {"profile", "edge"}


async def test_a_second_up_says_who_runs_and_harms_nothing(mesh: Running) -> None:
    before = mesh.state
    with pytest.raises(AlreadyRunningError, match=rf"pid {before.pid}, since .*http://127.0.0.1:{mesh.port}"):
        await Running(mesh.paths, mesh.port).up()
    assert mesh.state == before
    assert mesh.health()["profile"] == 1


async def test_a_killed_app_is_withdrawn_and_comes_back(mesh: Running) -> None:
    killed = mesh.instance("profile-0")
    assert killed
    assert killed.app.pid
    os.kill(killed.app.pid, signal.SIGKILL)
    await until(lambda: (i := mesh.instance("profile-0")) and i.ready and i.app.pid != killed.app.pid)
    await until(lambda: mesh.health()["profile"] == 1)
    assert (again := mesh.instance("profile-0"))
    assert again.app.restarts == killed.app.restarts + 1
    assert again.proxy.pid == killed.proxy.pid


async def test_a_killed_sidecar_comes_back_on_another_port(mesh: Running) -> None:
    killed = mesh.instance("profile-0")
    assert killed
    assert killed.proxy.pid
    os.kill(killed.proxy.pid, signal.SIGKILL)
    await until(lambda: (i := mesh.instance("profile-0")) and i.ready and i.proxy.pid != killed.proxy.pid)
    await until(lambda: mesh.health()["profile"] == 1)


async def test_a_killed_control_plane_is_given_everything_again_and_traffic_does_not_notice(mesh: Running) -> None:
    killed = mesh.state.control.pid
    assert killed
    os.kill(killed, signal.SIGKILL)
    while not (mesh.state.control.up and mesh.state.control.pid != killed):
        assert (await asyncio.to_thread(mesh.health))["profile"] == 1
        await asyncio.sleep(0.05)
    assert mesh.health()["profile"] == 1


async def test_a_killed_postgres_comes_back(mesh: Running) -> None:
    assert mesh.state.postgres
    killed = mesh.state.postgres.pid
    assert killed
    os.kill(killed, signal.SIGKILL)
    await until(lambda: (p := mesh.state.postgres) and p.up and p.pid != killed)


async def test_recorded_values_with_more_replicas_start_them_and_with_fewer_stop_them(mesh: Running) -> None:
    recorded = yaml.safe_load(mesh.paths.values.read_text())
    recorded["services"]["profile"]["replicas"] = 2
    mesh.paths.values.write_text(yaml.safe_dump(recorded))
    await until(lambda: (i := mesh.instance("profile-1")) and i.ready)
    await until(lambda: mesh.health()["profile"] == 2)

    recorded["services"]["profile"]["replicas"] = 1
    mesh.paths.values.write_text(yaml.safe_dump(recorded))
    await until(lambda: mesh.instance("profile-1") is None)
    assert mesh.health()["profile"] == 1


async def test_a_proxy_that_hangs_is_asked_whether_or_not_a_runner_tells_of_it(mesh: Running) -> None:
    """A root is dropped only when nobody lags, and a proxy may outlive its runner."""
    await settle(lambda: lagging(mesh.paths))
    profile = mesh.instance("profile-0")
    assert profile
    assert profile.proxy.pid
    aside = mesh.paths.state.with_suffix(".aside")
    os.kill(profile.proxy.pid, signal.SIGSTOP)
    try:
        assert await lagging(mesh.paths) == ["profile-0"]
        mesh.paths.state.rename(aside)
        assert await lagging(mesh.paths) == ["profile-0"]
        aside.rename(mesh.paths.state)
    finally:
        os.kill(profile.proxy.pid, signal.SIGCONT)
    await until(lambda: mesh.health()["profile"] == 1)


async def test_a_killed_runner_leaves_no_process_and_the_next_start_is_clean(mesh: Running) -> None:
    authority = CertificateAuthority(mesh.paths.identity)
    authority.trust_next()  # a root rotation that the runner's end interrupts
    os.kill(mesh.state.pid, signal.SIGKILL)
    await until(lambda: not marked(mesh.paths))
    assert await lagging(mesh.paths) == []
    await mesh.up()
    assert mesh.health()["profile"] == 1
    await until(lambda: not authority.rotating)
    assert authority.root.number == 2


async def test_down_leaves_no_process_no_socket_and_keeps_the_data(mesh: Running) -> None:
    assert await down(mesh.paths.home, wipe=False) is True
    assert marked(mesh.paths) == []
    assert not mesh.paths.run.exists()
    assert (mesh.paths.home / "postgres/data/PG_VERSION").exists()


async def test_a_taken_port_stops_the_start_before_anything_runs(mesh: Running) -> None:
    with socket.create_server(("127.0.0.1", mesh.port)):
        with pytest.raises(PortTakenError, match=f"port {mesh.port} .*MESH_PORT"):
            await Running(mesh.paths, mesh.port).up()
    assert marked(mesh.paths) == []


async def test_values_that_make_no_sense_are_refused_with_their_line(mesh: Running, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("services:\n  profile:\n    replicsa: 2\n")
    with pytest.raises(RefusedError, match=r"overlay.yaml:3: .*replicsa"):
        await detach(ROOT, services=None, values=[VALUES, overlay], on_event=lambda _: None)
    assert marked(mesh.paths) == []
