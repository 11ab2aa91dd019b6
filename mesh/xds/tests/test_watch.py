"""A watched values folder, as the kubelet mounts and swaps a ConfigMap."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc
import pytest
from nourish.mesh.v1 import control_pb2, control_pb2_grpc

from mesh.contract import Contract
from mesh.xds.fleet import Fleet
from mesh.xds.plan import Materials
from mesh.xds.server import serve, watch
from mesh.xds.tests.lab import LUA, Lab, poll
from mesh.xds.tests.test_mesh import values


def swap(mount: Path, version: str, text: str) -> None:
    """What the kubelet does: a new folder, and `..data` moved to it in one step."""
    (mount / version).mkdir(parents=True)
    (mount / version / "values.yaml").write_text(text)
    (mount / "..data_tmp").symlink_to(version)
    (mount / "..data_tmp").replace(mount / "..data")
    if not (mount / "values.yaml").is_symlink():
        (mount / "values.yaml").symlink_to("..data/values.yaml")


async def shows(lab: Lab, weight: int, error: str = "") -> bool:
    mesh = await lab.control.GetMesh(control_pb2.GetMeshRequest())
    return mesh.canary_weights.get("store") == weight and (
        error in mesh.values_error if error else not mesh.values_error
    )


async def test_what_proxies_did_not_answer_to_is_tried_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wrong with the file: it must not take another change of it to bring it into force."""
    mount = lab.folder / "values"
    swap(mount, "..1", values(0))
    await lab.stop_control()
    monkeypatch.setattr(watch, "APPLY_SECONDS", 0.5)
    monkeypatch.setattr(watch, "AGAIN_SECONDS", 0.1)
    await lab.start_control(mount)
    await poll(lambda: shows(lab, 0))
    await lab.report()
    await lab.proxy("front-0")
    await poll(lambda: lab.connected("front-0"))
    await lab.report(wait=True)
    frozen = lab.proxies["front-0"].process
    frozen.send_signal(signal.SIGSTOP)
    try:
        swap(mount, "..2", values(30))
        await poll(lambda: shows(lab, 0, "front-0 did not answer within 0.5 s"))
    finally:
        frozen.send_signal(signal.SIGCONT)
    await poll(lambda: shows(lab, 30))


async def test_an_edit_from_elsewhere_is_not_undone_unseen(lab: Lab) -> None:
    """The next content of the file says so and is left; the one after it is of somebody who has read that."""
    mount = lab.folder / "values"
    swap(mount, "..1", values(10))
    await lab.stop_control()
    await lab.start_control(mount)
    await poll(lambda: shows(lab, 10))
    assert (await lab.apply(values(40))).applied
    swap(mount, "..2", values(50))
    await poll(lambda: shows(lab, 40, "another edit came between"))
    swap(mount, "..3", values(60))
    await poll(lambda: shows(lab, 60))


async def test_a_mount(short_dir: Path, identity: Path, contract: Contract) -> None:
    """It is in force from the start and at each swap; a bad one is shown with its line and changes nothing."""
    mount, stop = short_dir / "values", asyncio.Event()
    swap(mount, "..1", values(10))
    fleet = Fleet(contract, Materials((identity / "jwks.json").read_text(), LUA))
    address = f"unix:{short_dir}/control.sock"
    served = asyncio.create_task(serve(address, fleet, stop, mount))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)

        async def mounted(weight: int, error: str) -> bool:
            mesh = await stub.GetMesh(control_pb2.GetMeshRequest(), wait_for_ready=True)
            told = mesh.values_error.startswith(error) if error else not mesh.values_error
            return mesh.canary_weights.get("store") == weight and told

        await poll(lambda: mounted(10, ""))
        swap(mount, "..2", values(300))
        await poll(lambda: mounted(10, f"{mount}/values.yaml:4: services.store.canary.weight"))
        swap(mount, "..3", values(30))
        await poll(lambda: mounted(30, ""))
        (mount / "values.yaml").unlink()
        await poll(lambda: mounted(30, f"{mount}: holds no .yaml file"))
    stop.set()
    await served
