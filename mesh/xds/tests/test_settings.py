"""A service reads its settings through its own sidecar, and nobody else's: real Envoys, real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.json_format import MessageToDict
from nourish.food.v1 import food_pb2, food_pb2_grpc
from nourish.mesh.v1 import control_pb2, settings_pb2, settings_pb2_grpc

from mesh.xds.tests.lab import ROOT, Lab, poll

CERTIFICATE = "x-forwarded-client-cert"
PATIENCE = 60  # seconds, for Envoys and processes on a machine that runs others' tests too
FORGED = (("x-nourish-service", "front"), (CERTIFICATE, "URI=spiffe://nourish.local/ns/nourish/sa/front"))


def values(store: str, front: str = "{}", weight: int = 0, flags: str = "{}") -> str:
    """The small mesh with these settings, and flags of the store."""
    return f"""
services:
  store: {{settings: {store}, flags: {flags}, canary: {{replicas: 1, weight: {weight}}}}}
  front: {{calls: [store], settings: {front}}}
"""


async def start(lab: Lab, store: str, front: str = "{}") -> None:
    """A sidecar each, with these settings."""
    for id in ("store-0", "front-0"):
        await lab.proxy(id)
    await poll(lambda: lab.connected("store-0", "front-0"), PATIENCE)
    assert (await lab.apply(values(store, front))).applied
    await lab.report(wait=True)


async def watch(channel: grpc.aio.Channel, metadata: Any = ()) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """What a service is told through a channel: revisions and settings."""
    stub = settings_pb2_grpc.SettingsServiceStub(channel)
    async for answer in stub.WatchSettings(settings_pb2.WatchSettingsRequest(), metadata=metadata):
        yield answer.revision, MessageToDict(answer).get("settings", {})


async def told(channel: grpc.aio.Channel, metadata: Any = ()) -> dict[str, Any]:
    """All of its settings as they are now; asked again until its sidecar has the way there."""
    return (await poll(lambda: anext(watch(channel, metadata)), PATIENCE))[1]


class Reader:
    """`reader.py` as an instance's application."""

    def __init__(self, lab: Lab, id: str) -> None:
        self._folder, self._service = lab.folder / id, id.partition("-")[0]
        lab.stack.push_async_callback(self.stop)

    async def start(self) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/gen/python",
            "NOURISH_SERVICE": self._service,
            "NOURISH_LISTEN": f"unix:{self._folder}/app.sock",
            "NOURISH_EGRESS": f"unix:{self._folder}/egress.sock",
        }
        with (self._folder / "app.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mesh.xds.tests.reader", env=env, stdout=log, stderr=log
            )
        self._channel = grpc.aio.insecure_channel(f"unix:{self._folder}/app.sock")
        await poll(self.says, PATIENCE)

    async def says(self, text: str = "") -> str:
        """What it answers, if that is `text`; and that it is the process that was started."""
        food = await food_pb2_grpc.FoodServiceStub(self._channel).GetFood(food_pb2.GetFoodRequest(name="foods/any"))
        assert food.category == str(self._process.pid)
        return food.display_name if text in ("", food.display_name) else ""

    async def stop(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._channel.close()


async def test_an_edit_is_seen_without_a_restart_and_touches_no_proxy_and_no_control_plane_changes_nothing(
    lab: Lab,
) -> None:
    """A service that starts without a control plane has its defaults; what it was told holds while there is none."""
    await start(lab, "{reader.greeting: one}")
    await lab.stop_control()
    reader = Reader(lab, "store-0")
    await reader.start()
    assert await reader.says() == "by default"
    await lab.start_control()
    assert (await lab.apply(values("{reader.greeting: one}"))).applied
    await lab.report()
    await poll(lambda: lab.connected("store-0", "front-0"), PATIENCE)
    await poll(lambda: reader.says("one"), PATIENCE)

    before = await lab.control.GetMesh(control_pb2.GetMeshRequest())
    answer = await lab.apply(values("{reader.greeting: two}"))
    assert (answer.applied, list(answer.proxies)) == (True, [])
    assert list(answer.changes) == ['store: setting reader.greeting "one" -> "two", no proxy']
    await poll(lambda: reader.says("two"), PATIENCE)
    after = await lab.control.GetMesh(control_pb2.GetMeshRequest())
    assert list(after.proxies) == list(before.proxies)
    assert after.revision == answer.revision != before.revision

    loud = values("{reader.greeting: two}", flags="{reader.loud: {rules: [{variant: enabled}]}}")
    changed = 'store: flag reader.loud none -> {"rules": [{"variant": "enabled"}]}, no proxy'
    assert list((await lab.apply(loud)).changes) == [changed]
    await poll(lambda: reader.says("TWO"), PATIENCE)

    await lab.stop_control()
    assert await reader.says() == "TWO"
    await lab.start_control()
    assert (await lab.apply(values("{}"))).applied
    await poll(lambda: reader.says("by default"), PATIENCE)


async def test_a_service_obtains_its_own_settings_whatever_it_claims(lab: Lab) -> None:
    """Its sidecar says who it is, over whatever the application writes."""
    await start(lab, "{own: 1, flag: true, text: 'yes'}", "{secret: 2}")
    async with lab.proxies["store-0"].channel() as store, lab.proxies["front-0"].channel() as front:
        for metadata in ((), FORGED, FORGED[:1], FORGED[1:], (FORGED[0], FORGED[0])):
            assert await told(store, metadata) == {"own": 1.0, "flag": True, "text": "yes"}
        assert await told(front) == {"secret": 2.0}


async def test_on_the_control_planes_socket_a_certificate_goes_before_the_sidecars_word(lab: Lab) -> None:
    """There the Envoy in front of it writes the certificate; nobody without either is told anything."""
    await start(lab, "{own: 1}", "{secret: 2}")
    store = (CERTIFICATE, "By=x;URI=spiffe://nourish.local/ns/nourish/sa/store")
    async with grpc.aio.insecure_channel(f"unix:{lab.folder}/control.sock") as channel:
        assert await told(channel, (FORGED[0], store)) == {"own": 1.0}
        assert await told(channel, ((CERTIFICATE, "URI=spiffe://nourish.local/ns/nourish/sa/edge"),)) == {}
        alien = (CERTIFICATE, "URI=spiffe://elsewhere/ns/nourish/sa/front")
        for metadata in ((), (FORGED[0], FORGED[0]), (FORGED[0], alien), (store, FORGED[1])):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(watch(channel, metadata))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_watch_tells_of_its_own_changes_alone_and_of_no_edit_that_is_undone(lab: Lab) -> None:
    await start(lab, "{size: 1}", "{}")
    async with lab.proxies["store-0"].channel() as channel:
        assert await told(channel) == {"size": 1.0}
        stream = watch(channel)
        assert (await anext(stream))[1] == {"size": 1.0}
        assert (await lab.apply(values("{size: 1}", "{size: 2}"))).applied
        frozen = lab.proxies["front-0"].process
        frozen.send_signal(signal.SIGSTOP)
        try:
            undone = await lab.apply(values("{size: 3}", weight=50), timeout=duration_pb2.Duration(seconds=1))
        finally:
            frozen.send_signal(signal.SIGCONT)
        assert not undone.applied
        answer = await lab.apply(values("{size: true}", weight=50), timeout=duration_pb2.Duration(seconds=PATIENCE))
        assert answer.applied
        assert await anext(stream) == (answer.revision, {"size": True})
