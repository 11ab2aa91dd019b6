"""A control plane and a service of this tree, found by the command as those of a running mesh would be."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from nourish.food.v1 import food_pb2
from nourish.food.v1.food_pb2_grpc import FoodServiceServicer
from nourish.mesh.v1 import control_pb2
from nourish.mesh.v1.control_pb2_grpc import ControlServiceStub

from mesh.cli import main
from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.local.events import InstanceState, ProcessState, State, now
from mesh.local.paths import Paths
from mesh.runtime import auth, errors
from mesh.runtime.server import build_server

ROOT = Path(__file__).resolve().parents[3]
Run = Callable[..., Result]


class Foods(FoodServiceServicer):
    """Answers so that a test sees what reached it."""

    async def GetFood(self, request: food_pb2.GetFoodRequest, context: grpc.aio.ServicerContext) -> food_pb2.Food:
        """Describes the call, or fails as `foods/none` does."""
        if request.name == "foods/none":
            raise errors.not_found(request.name)
        headers = auth.current.get().headers
        return food_pb2.Food(name=request.name, display_name=headers.get("authorization", ""))


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty HOME with its RUN, both removed afterwards; the command's for this test."""
    with temporary_paths() as paths:
        monkeypatch.setenv("MESH_HOME", str(paths.home))
        yield paths.home


@contextmanager
def temporary_paths() -> Iterator[Paths]:
    """A HOME and its RUN for as long as the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="nourish-home-"))
    paths = Paths.of(ROOT, {"MESH_HOME": str(folder)})
    try:
        yield paths
    finally:
        shutil.rmtree(paths.run, ignore_errors=True)
        shutil.rmtree(folder)


@pytest.fixture
def run() -> Run:
    """Runs `mesh ...`."""
    return lambda *arguments, **more: CliRunner().invoke(main, [str(a) for a in arguments], prog_name="mesh", **more)


def describe(paths: Paths, edge: str = "http://127.0.0.1:1") -> None:
    """Writes the state of a mesh with one instance of food."""
    up = ProcessState(os.getpid(), True, 0)
    instance = InstanceState("food-0", "food", "stable", True, 4321, "", up, up)
    State(os.getpid(), now(), "ready", edge, str(ROOT), str(paths.run), None, up, (instance,)).write(paths.state)


@pytest.fixture
def without_control(home: Path) -> Paths:
    """The state of a mesh that is up but for its control plane."""
    paths = Paths.of(ROOT)
    paths.prepare_home()
    describe(paths)
    return paths


@contextmanager
def control_process() -> Iterator[Paths]:
    """A real control plane on its socket, and food's certificate."""
    with temporary_paths() as paths:
        paths.prepare_home()
        paths.prepare_run()
        tokens.signing_key(paths.identity)
        CertificateAuthority(paths.identity).issue("food", "spiffe://nourish.local/ns/nourish/sa/food")
        jwks = paths.identity / "jwks.json"
        argv = [sys.executable, "-m", "mesh.xds", "--socket", f"unix:{paths.control_socket}", "--jwks", str(jwks)]
        with (paths.logs / "control.log").open("wb") as log:
            process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        try:
            with grpc.insecure_channel(f"unix:{paths.control_socket}") as channel:
                grpc.channel_ready_future(channel).result(timeout=60)
            yield paths
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def control() -> Iterator[Paths]:
    """A control plane that was told the shipped values, as the runner does."""
    with control_process() as paths, grpc.insecure_channel(f"unix:{paths.control_socket}") as channel:
        shipped = control_pb2.ValuesFile(path="values.yaml", content=(ROOT / "helm/values.yaml").read_text())
        ControlServiceStub(channel).ApplyValues(control_pb2.ApplyValuesRequest(files=[shipped]), timeout=20)
        yield paths


@pytest.fixture
def mesh(control: Paths, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """The state of a mesh that is up, with that control plane, for this test's command."""
    monkeypatch.setenv("MESH_HOME", str(control.home))
    describe(control)
    return control


@pytest.fixture
def new_control(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """The same with a control plane that nobody has told anything yet."""
    with control_process() as paths:
        monkeypatch.setenv("MESH_HOME", str(paths.home))
        describe(paths)
        yield paths


@pytest.fixture
def food(home: Path) -> Iterator[Paths]:
    """A food service on the egress socket of food-0 and at the edge's address."""
    paths = Paths.of(ROOT)
    paths.prepare_home()
    paths.prepare_run()
    paths.instance("food-0").mkdir()
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = build_server(Foods()).grpc
        server.add_insecure_port(f"unix:{paths.egress_socket('food-0')}")
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        describe(paths, f"http://127.0.0.1:{port}")
        started.set()
        await stop.wait()
        await server.stop(None)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(20)
        yield paths
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
