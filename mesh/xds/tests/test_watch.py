"""A watched values folder, as the kubelet mounts and swaps a ConfigMap."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from nourish.mesh.v1 import control_pb2, control_pb2_grpc

from mesh.contract import Contract
from mesh.xds.fleet import Fleet
from mesh.xds.plan import Materials
from mesh.xds.server import serve
from mesh.xds.tests.lab import LUA, poll
from mesh.xds.tests.test_mesh import values


def swap(mount: Path, version: str, text: str) -> None:
    """What the kubelet does: a new folder, and `..data` moved to it in one step."""
    (mount / version).mkdir(parents=True)
    (mount / version / "values.yaml").write_text(text)
    (mount / "..data_tmp").symlink_to(version)
    (mount / "..data_tmp").replace(mount / "..data")
    if not (mount / "values.yaml").is_symlink():
        (mount / "values.yaml").symlink_to("..data/values.yaml")


async def test_a_mount(short_dir: Path, identity: Path, contract: Contract) -> None:
    """It is in force from the start and at each swap; a bad one is shown with its line and changes nothing."""
    mount, stop = short_dir / "values", asyncio.Event()
    swap(mount, "..1", values(10))
    fleet = Fleet(contract, Materials((identity / "jwks.json").read_text(), LUA))
    address = f"unix:{short_dir}/control.sock"
    served = asyncio.create_task(serve(address, fleet, stop, mount))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)

        async def shows(weight: int, error: str) -> bool:
            mesh = await stub.GetMesh(control_pb2.GetMeshRequest(), wait_for_ready=True)
            told = mesh.values_error.startswith(error) if error else not mesh.values_error
            return mesh.canary_weights.get("store") == weight and told

        await poll(lambda: shows(10, ""))
        swap(mount, "..2", values(300))
        await poll(lambda: shows(10, f"{mount}/values.yaml:4: services.store.canary.weight"))
        swap(mount, "..3", values(30))
        await poll(lambda: shows(30, ""))
        (mount / "values.yaml").unlink()
        await poll(lambda: shows(30, f"{mount}: holds no .yaml file"))
    stop.set()
    await served
