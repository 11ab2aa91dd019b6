"""Calls are recorded at real sidecars while they serve, and sent again to a real canary."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from mesh.dynamic import Codec, pool
from mesh.replay.play import STATUS, Replay
from mesh.replay.record import Recorder, recordable
from mesh.replay.tap import BODY_BYTES, TapError, request, tapped
from mesh.xds.tests.lab import Lab, call, code, poll
from mesh.xds.tests.test_mesh import GET, PUT, bearer, start

NAMES = [f"items/{n}" for n in range(5)]
# As many as a large service has: a regex of them all is more than Envoy compiles.
MORE_PATHS = [f"/lab.store.v1.StoreService/ListThingsOfKind{n}" for n in range(50)]


def store(codec: Codec, note: str):
    """Answers as a store with this note on each item."""

    async def answer(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        name = codec.deserialize_request(data).name
        if name == "items/none":
            await context.abort(grpc.StatusCode.NOT_FOUND, "none")
        if name == "items/down":
            await context.abort(grpc.StatusCode.DATA_LOSS, "down")
        filling = "x" * BODY_BYTES if name == "items/big" else note
        return codec.serialize(codec.parse_answer(f'{{"name": "{name}", "note": "{filling}"}}'))

    return answer


@pytest.fixture
async def stores(lab: Lab) -> dict[str, Codec]:
    """A store, its canary that answers as it does, and a front that calls them; the codecs of what can be recorded."""
    types = pool(lab.contract.descriptors)
    methods = {m.path: Codec(types, m) for m in lab.contract.methods["store"] if recordable(m)}
    for id in ("store-0", "store-canary-0"):
        await lab.app(id, store(methods[GET], "good"))
    await start(lab, "store-0", "store-canary-0", "front-0", weight=0)
    return methods


@asynccontextmanager
async def recording(lab: Lab, methods: dict[str, Codec]):
    """What the store's sidecar shows while the block runs: the calls and the recorder."""
    calls: list = []
    recorder = Recorder(methods, calls.append, 100)
    async with tapped(lab.proxies["store-0"].folder / "admin.sock", request([*methods, *MORE_PATHS], 1)) as traces:

        async def listen() -> None:
            async for trace in traces:
                recorder.take(trace)

        task = asyncio.create_task(listen())
        try:
            yield calls, recorder
        finally:
            task.cancel()


async def test_what_was_recorded_is_answered_alike_by_the_canary_until_the_canary_differs(
    lab: Lab, stores: dict[str, Codec]
) -> None:
    """Only settled calls of NO_SIDE_EFFECTS methods are recorded; no restart, no change of the listener."""
    get = stores[GET]
    store_proxy, front = lab.proxies["store-0"], lab.proxies["front-0"]
    modified = await store_proxy.stat("listener_manager.listener_modified")
    async with front.channel() as channel:
        async with recording(lab, stores) as (calls, recorder):
            await call(channel, PUT, metadata=bearer(lab.identity, "ada", "store.write"))
            for name in [*NAMES, "items/big"]:
                await call(channel, GET, get.serialize(get.parse(f'{{"name": "{name}"}}')))
            for name, expected in (("items/none", "NOT_FOUND"), ("items/down", "DATA_LOSS")):
                data = get.serialize(get.parse(f'{{"name": "{name}"}}'))
                assert (await code(channel, GET, request=data)).name == expected

            async def seen() -> bool:
                return recorder.recorded.total() + recorder.skipped.total() >= 8

            await poll(seen)
        assert [c.request["name"] for c in calls] == [*NAMES, "items/none"]
        assert {c.method for c in calls} == {GET}
        assert [c.code for c in calls] == ["OK"] * 5 + ["NOT_FOUND"]
        assert dict(recorder.skipped) == {"too large": 1, "failed with DATA_LOSS": 1}
        assert await store_proxy.stat("listener_manager.listener_modified") == modified

        before = len(lab.apps["store-canary-0"].calls)
        alike = await Replay(stores, "canary", "recorded", 0, None).run(channel, calls, 2)
        assert (alike.compared, alike.differing) == (6, [])
        assert len(lab.apps["store-canary-0"].calls) - before == 6

        lab.apps["store-canary-0"].handler = store(get, "bad")
        for against in ("recorded", "stable"):
            changed = await Replay(stores, "canary", against, 0, None).run(channel, calls, 2)
            assert [(o.line, [d.path for d in o.differences]) for o in changed.differing] == [
                (n, ["note"]) for n in range(2, 7)
            ]
        lab.apps["store-canary-0"].handler = None  # answers bytes that are no message
        broken = await Replay(stores, "canary", "stable", 0, None).run(channel, calls, 2)
        assert {d.path for o in broken.differing for d in o.differences} == {STATUS}


async def test_a_sidecar_is_tapped_by_one_at_a_time_and_by_the_next_when_that_one_leaves(
    lab: Lab, stores: dict[str, Codec]
) -> None:
    async with recording(lab, stores):
        with pytest.raises(TapError, match="already"):
            async with recording(lab, stores):
                pass

    async def free() -> bool:
        try:
            async with recording(lab, stores):
                return True
        except TapError:
            return False

    await poll(free)
