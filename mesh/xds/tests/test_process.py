"""The control plane as its own process, over the contracts and values of this repository."""

from __future__ import annotations

import asyncio
import signal
import stat
import sys
from pathlib import Path

import grpc
from nourish.mesh.v1 import control_pb2, control_pb2_grpc

from mesh.contract import Contract
from mesh.values import CHART_VALUES, load, read
from mesh.xds.fleet import Fleet
from mesh.xds.plan import Materials
from mesh.xds.tests.lab import LUA, ROOT, poll


async def test_process(short_dir: Path, identity: Path) -> None:
    """It serves on a socket that only its owner may open, takes the repository's values, and ends on SIGTERM."""
    socket = short_dir / "control.sock"
    command = ("-m", "mesh.xds", "--socket", f"unix:{socket}", "--jwks", str(identity / "jwks.json"))
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            control = control_pb2_grpc.ControlServiceStub(channel)
            await poll(lambda: control.GetMesh(control_pb2.GetMeshRequest()), seconds=60)
            assert stat.S_IMODE(socket.stat().st_mode) & 0o077 == 0
            file = control_pb2.ValuesFile(path=str(CHART_VALUES), content=CHART_VALUES.read_text())
            answer = await control.ApplyValues(control_pb2.ApplyValuesRequest(files=[file]))
            assert answer.applied, answer.errors
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_no_key_no_start(short_dir: Path) -> None:
    """Without the keys of user tokens it does not start: it would switch authentication off."""
    command = ("-m", "mesh.xds", "--socket", f"unix:{short_dir}/control.sock", "--jwks", str(short_dir / "absent"))
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode != 0
    assert b"absent" in errors


def test_repository_compiles(identity: Path) -> None:
    """Every instance that the repository's own values name can be configured."""
    contract = Contract.load((ROOT / "gen/descriptors.binpb").read_bytes())
    fleet = Fleet(contract, Materials((identity / "jwks.json").read_text(), LUA))
    fleet.check(load(read([CHART_VALUES])))
