"""Who gets which instance, and how much it takes: what real Envoys make of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import grpc
import pytest

from mesh.identity import tokens
from mesh.xds.tests.conftest import STORE
from mesh.xds.tests.lab import Lab, Proxy, call, poll, status

GET, SWEEP = f"/{STORE}/GetItem", f"/{STORE}/Sweep"
Code = grpc.StatusCode
NEVER = ("x-nourish-canary", "never")


def values(stanza: str) -> str:
    return f"services: {{store: {{{stanza}}}, front: {{calls: [store]}}}}"


async def start(lab: Lab, zones: dict[str, str]) -> None:
    """Brings up these instances, each in its zone; `front` and `edge` are callers."""
    await lab.report()
    assert (await lab.apply(values("replicas: 2, canary: {replicas: 1}"))).applied
    for id, zone in zones.items():
        await lab.app(id)
        await lab.proxy(id, subset="canary" if "canary" in id else "stable", zone=zone)
    stores = [id for id in zones if id.startswith("store")]
    await poll(lambda: lab.connected(*zones))
    assert not (await lab.report(*stores, wait=True)).waiting
    await lab.healthy("front-0", *stores)


async def test_users_stay_where_they_are(lab: Lab, identity: Path) -> None:
    """A verified user has one subset, at the edge too; a growing weight moves users to the canary and none away."""
    await start(lab, {"store-0": "", "store-canary-0": "", "front-0": "", "edge-0": ""})
    bearer = {f"user {n}": ("authorization", f"Bearer {tokens.mint(identity, f'user {n}')}") for n in range(40)}
    listeners = await lab.proxies["front-0"].stat("listener_manager.listener_modified")

    async def with_canary(channel: grpc.aio.Channel) -> set[str]:
        """The users whom the canary serves."""
        found = {}
        for user, token in bearer.items():
            (found[user],) = {await call(channel, GET, metadata=(token,)) for _ in range(2)}
        return {user for user, name in found.items() if name == b"store-canary-0"}

    port = await lab.proxies["edge-0"].port("edge")
    async with (
        lab.proxies["front-0"].channel() as channel,
        grpc.aio.insecure_channel(f"localhost:{port}") as outside,
    ):
        await poll(lambda: call(outside, GET))
        moved: set[str] = set()
        for weight in (10, 40, 60):
            assert (await lab.apply(values(f"canary: {{replicas: 1, weight: {weight}, sticky: user}}"))).applied
            before, moved = moved, await with_canary(channel)
            assert before <= moved
            assert await with_canary(outside) == moved
        assert 0 < len(moved) < 40
        assert await lab.proxies["front-0"].stat("listener_manager.listener_modified") == listeners
        # Whoever only says who they are is nobody.
        forged = (("x-nourish-user", "user 1"),)
        for way in (channel, outside):
            assert len({await call(way, GET, metadata=forged) for _ in range(40)}) == 2


async def test_own_zone_first(lab: Lab) -> None:
    """Calls stay in the caller's zone while there is a well instance in it, and leave it without a failure."""
    await start(lab, {"store-0": "b", "store-1": "a", "store-canary-0": "a", "front-0": "a"})
    async with lab.proxies["front-0"].channel() as channel:

        async def taken() -> Counter[bytes]:
            return Counter([await call(channel, GET) for _ in range(30)])

        assert len(await taken()) == 2
        assert (await lab.apply(values("replicas: 2, canary: {replicas: 1}, traffic: {zone: own}"))).applied
        assert await taken() == {b"store-1": 30}
        await lab.apps["store-1"].stop()
        (lab.folder / "store-1/app.sock").unlink(missing_ok=True)
        assert await taken() == {b"store-0": 30}
        await lab.app("store-1")

        async def back() -> bool:
            return await taken() == {b"store-1": 30}

        assert await poll(back, seconds=30)


async def test_limits(lab: Lab) -> None:
    """What is too much is refused in words; connections end and calls do not."""
    await start(lab, {"store-0": "", "front-0": ""})
    async with lab.proxies["front-0"].channel() as channel:
        await sizes(lab, channel)
        await streams(lab, channel)
        await life(lab, channel)
        await shedding(lab, channel)


async def sizes(lab: Lab, channel: grpc.aio.Channel) -> None:
    """A request over the limit never reaches the application, a response over it never the caller."""

    async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return b"x" * int(request[-8:])

    lab.apps["store-0"].handler = answer
    assert (await lab.apply(values("limits: {maxRequestBytes: 20000, maxResponseBytes: 100000}"))).applied
    lab.apps["store-0"].calls.clear()
    assert await call(channel, GET, request=b"10".zfill(19_000)) == b"x" * 10
    assert len(await call(channel, GET, request=b"90000")) == 90_000
    assert len(lab.apps["store-0"].calls) == 2
    for length in (21_000, 3_000_000):
        assert await refusal(channel, b"10".zfill(length)) == "The request is larger than the service takes."
    assert len(lab.apps["store-0"].calls) == 2
    for length in (110_000, 3_000_000):
        assert await refusal(channel, str(length).encode()) == "The response is larger than the service may give."
    lab.apps["store-0"].handler = None


async def refusal(channel: grpc.aio.Channel, request: bytes) -> str | None:
    """What is said of a call that is too large."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(channel, GET, request=request)
    assert error.value.code() == Code.RESOURCE_EXHAUSTED, error.value
    return error.value.details()


async def streams(lab: Lab, channel: grpc.aio.Channel) -> None:
    """A second call at once needs a second connection."""
    assert (await lab.apply(values("limits: {streamsPerConnection: 1}"))).applied
    waiting: list[asyncio.Event] = []

    async def meet(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Each waits for the other."""
        waiting.append(asyncio.Event())
        if len(waiting) == 2:
            for event in waiting:
                event.set()
        await waiting[-1].wait()
        return b""

    async def parted() -> bool:
        """Once the connection of before the edit has gone."""
        waiting.clear()
        await asyncio.gather(*(call(channel, GET) for _ in range(2)))
        return await lab.proxies["front-0"].stat("cluster.store.stable.upstream_cx_active") >= 2

    lab.apps["store-0"].handler = meet
    assert await poll(parted)
    lab.apps["store-0"].handler = None


async def life(lab: Lab, channel: grpc.aio.Channel) -> None:
    """Connections are replaced again and again, and no call that is not safe to repeat is lost."""
    assert (await lab.apply(values("limits: {connectionSeconds: 1}"))).applied
    front = lab.proxies["front-0"]
    before = await opened(front)

    async def renewed() -> bool:
        assert await call(channel, SWEEP) == b"store-0"
        return await opened(front) >= before + 3

    assert await poll(renewed)


async def opened(front: Proxy) -> int:
    return await front.stat("cluster.store.stable.upstream_cx_total")


async def shedding(lab: Lab, channel: grpc.aio.Channel) -> None:
    """What an instance cannot take is shed at once, tried nowhere again, and no reason to leave the instance alone."""
    assert (await lab.apply(values("traffic: {concurrency: {least: 2}}"))).applied

    async def drained() -> bool:
        """The connections with the settings of before: a call that outlived them would break."""
        return not await lab.proxies["store-0"].stat("listener_manager.total_filter_chains_draining")

    await poll(drained)
    assert (await lab.apply(values("traffic: {concurrency: {adaptive: true, least: 2}}"))).applied
    served = asyncio.Event()

    async def slow(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await served.wait()
        return b""

    async def one() -> Code:
        try:
            return await status(channel, GET)
        finally:
            codes.append(None)
            if len(codes) >= 58:  # all but the two that are served
                served.set()

    codes: list[None] = []
    store, front = lab.apps["store-0"], lab.proxies["front-0"]
    store.handler = slow
    store.calls.clear()
    tried_again = await front.stat("cluster.store.stable.upstream_rq_retry")
    found = Counter(await asyncio.gather(*(one() for _ in range(60))))
    assert found == {Code.OK: 2, Code.RESOURCE_EXHAUSTED: 58}
    assert len(store.calls) == 2
    assert await front.stat("cluster.store.stable.upstream_rq_retry") == tried_again
    await lab.healthy("front-0", "store-0")
    assert (await lab.apply(values(""))).applied
    assert await call(channel, GET) == b""
