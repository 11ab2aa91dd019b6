"""Real Envoys under the real control plane: what crosses two sidecars, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from pathlib import Path

import grpc
import pytest

from mesh.identity import tokens
from mesh.xds.tests.lab import Lab, Proxy, call, code, poll

GET, PUT, SWEEP = (f"/nourish.store.v1.StoreService/{m}" for m in ("GetItem", "PutItem", "Sweep"))
ASK = "/nourish.front.v1.FrontService/Ask"
Code = grpc.StatusCode


def values(weight: int = 10, calls: str = "[store]", replicas: int = 1, more: str = "") -> str:
    return f"""
services:
  store:
    canary: {{ replicas: {replicas}, weight: {weight} }}
    {more}
  front:
    calls: {calls}
"""


async def start(lab: Lab, *ids: str, weight: int = 10) -> None:
    """Brings up a proxy and, if there is none, an application for each instance, and reports the stores."""
    await lab.report()
    assert (await lab.apply(values(weight))).applied
    for id in ids:
        await lab.proxy(id, subset="canary" if "canary" in id else "stable")
        if id not in lab.apps:
            await lab.app(id)
    stores = [id for id in ids if id.startswith("store")]
    for id in ids:
        await lab.proxies[id].port()
    assert not (await lab.report(*stores, wait=True)).waiting
    if "front-0" in ids:
        await lab.healthy("front-0", *stores)


def bearer(identity: Path, user: str, *scopes: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {tokens.mint(identity, user, scopes)}"),)


async def direct(identity: Path, proxy: Proxy, service: str | None) -> grpc.aio.Channel:
    """A channel straight to an inbound listener, with a service's certificate or none."""
    folder = identity / (service or "front")
    root = (folder / "ca.pem").read_bytes()
    pair = ((folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes()) if service else (None, None)
    # A SPIFFE certificate has no host name to check; the tests are about what the server accepts.
    return grpc.aio.secure_channel(
        f"127.0.0.1:{await proxy.port()}",
        grpc.ssl_channel_credentials(root, *pair),
        options=[("grpc.ssl_target_name_override", "store")],
    )


async def test_weights_and_header(lab: Lab) -> None:
    """A new weight reaches the caller as routes alone, shares follow it, a header forces either, no call is lost."""
    await start(lab, "store-0", "store-canary-0", "front-0", weight=50)
    front = lab.proxies["front-0"]
    async with front.channel() as channel:
        for weight in (10, 90):
            clusters = await front.stat("cluster_manager.cluster_modified")
            listeners = await front.stat("listener_manager.listener_modified")
            answer = await lab.apply(values(weight))
            assert answer.applied
            assert list(answer.proxies) == ["front-0"]
            assert answer.converged_in.ToMilliseconds() < 5000
            assert await front.stat("cluster_manager.cluster_modified") == clusters
            assert await front.stat("listener_manager.listener_modified") == listeners
            names = Counter([(await call(channel, GET)).decode() for _ in range(400)])
            # 400 calls: a standard deviation of 1.5 points, five of them allowed
            assert abs(names["store-canary-0"] / 400 - weight / 100) < 0.075
        assert answer.changes == ["store: canary 10 % -> 90 %, 1 proxy"]
        for value, name in (("always", b"store-canary-0"), ("never", b"store-0")):
            forced = {await call(channel, GET, metadata=(("x-nourish-canary", value),)) for _ in range(20)}
            assert forced == {name}
        assert (await lab.apply(values(0))).applied
        assert {await call(channel, GET) for _ in range(100)} == {b"store-0"}


async def test_undeclared(lab: Lab, identity: Path) -> None:
    """The caller's sidecar refuses what is not declared; so does the callee's, which logs who tried."""
    await start(lab, "store-0", "front-0")
    store = lab.proxies["store-0"]
    async with lab.proxies["front-0"].channel() as channel:
        assert await code(channel, ASK) == Code.PERMISSION_DENIED
        assert await code(channel, "/nourish.store.v1.StoreService/NoSuch") == Code.PERMISSION_DENIED
    async with await direct(identity, store, "intruder") as channel:
        for path in (GET, "/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
            assert await code(channel, path) == Code.PERMISSION_DENIED
    async with await direct(identity, store, "edge") as channel:
        assert await call(channel, GET) == b"store-0"
        assert await code(channel, SWEEP) == Code.PERMISSION_DENIED  # access: service
        assert await code(channel, "/grpc.reflection.v1.ServerReflection/X") == Code.PERMISSION_DENIED
        assert await call(channel, "/grpc.health.v1.Health/Check") == b"\x08\x01"  # SERVING
    async with await direct(identity, store, "front") as channel:
        assert await call(channel, SWEEP) == b"store-0"
        assert (
            await code(channel, "/grpc.reflection.v1.ServerReflection/X") == Code.UNIMPLEMENTED
        )  # from the application
        assert await code(channel, "/nourish.store.v1.StoreService/NoSuch") == Code.UNIMPLEMENTED  # from the sidecar

    async def logged() -> bool:
        denied = [line for line in store.access_log if line["status"] == "PermissionDenied"]
        return "spiffe://nourish.local/ns/nourish/sa/intruder" in {line["caller"] for line in denied}

    assert await poll(logged)
    assert {path for path, _ in lab.apps["store-0"].calls} == {GET, SWEEP}


async def test_no_certificate_no_session(lab: Lab, identity: Path) -> None:
    """Without a certificate of this mesh the TLS handshake fails; TLS 1.2 is not spoken."""
    await start(lab, "store-0")
    store = lab.proxies["store-0"]
    async with await direct(identity, store, None) as channel:
        assert await code(channel, GET, timeout=5) == Code.UNAVAILABLE

    async def handshake(context: ssl.SSLContext) -> None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", await store.port(), ssl=context)
        try:
            assert not await asyncio.wait_for(reader.read(1), 5)
            raise ConnectionResetError
        finally:
            writer.close()

    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await handshake(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_cert_chain(identity / "front/cert.pem", identity / "front/key.pem")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version"):
        await handshake(old)
    assert lab.apps["store-0"].calls == []


async def test_callee_must_be_who_it_should_be(lab: Lab) -> None:
    """A proxy with another service's certificate, though of the same authority, gets no call."""
    await lab.report()
    assert (await lab.apply(values(0))).applied
    await lab.proxy("store-0", identity="intruder")
    await lab.proxy("front-0")
    await lab.app("store-0")
    await lab.proxies["front-0"].port()
    await lab.report("store-0", wait=True)
    async with lab.proxies["front-0"].channel() as channel:
        assert await code(channel, GET) == Code.UNAVAILABLE
    assert await poll(lambda: lab.proxies["front-0"].stat("cluster.store.stable.ssl.fail_verify_san"))
    assert lab.apps["store-0"].calls == []


async def test_users(lab: Lab, identity: Path) -> None:
    """A user's token is verified and its scopes enforced; the application hears of it in headers nobody can forge."""
    await start(lab, "store-0", "front-0", weight=0)
    forged = (("x-nourish-user", "mallory"), ("x-nourish-scopes", "store.write"), ("x-envoy-max-retries", "9"))
    async with lab.proxies["front-0"].channel() as channel:
        assert await code(channel, PUT, metadata=forged) == Code.UNAUTHENTICATED
        assert await code(channel, PUT, metadata=(("authorization", "Bearer nonsense"),)) == Code.UNAUTHENTICATED
        assert await code(channel, GET, metadata=(("authorization", "Bearer nonsense"),)) == Code.UNAUTHENTICATED
        assert await code(channel, PUT, metadata=bearer(identity, "alice", "store.read")) == Code.PERMISSION_DENIED
        assert lab.apps["store-0"].calls == []
        good = bearer(identity, "alice", "store.read", "store.write")
        await call(channel, PUT, metadata=good + forged)
        await call(channel, GET, metadata=forged)
    (_, put), (_, get) = lab.apps["store-0"].calls
    assert (put["x-nourish-user"], put["x-nourish-scopes"]) == ("alice", "store.read store.write")
    assert put["authorization"] == good[0][1]
    assert put["x-forwarded-client-cert"].endswith(";URI=spiffe://nourish.local/ns/nourish/sa/front")
    assert not {"x-nourish-user", "x-nourish-scopes", "x-envoy-max-retries"} & get.keys()


async def test_deadlines(lab: Lab) -> None:
    """The contract's deadline holds, the caller's wins when it is nearer, and the callee is told what is left."""

    async def slow(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if request:
            await asyncio.sleep(5)
        return f"{context.time_remaining():.3f}".encode()

    await lab.app("store-0", slow)
    await start(lab, "store-0", "front-0", weight=0)
    async with lab.proxies["front-0"].channel() as channel:
        assert 1.0 < float(await call(channel, GET, timeout=None)) <= 2.0
        assert 1.0 < float(await call(channel, GET, timeout=100)) <= 2.0
        # Each end keeps deadlines in whole milliseconds, rounded up.
        assert float(await call(channel, GET, timeout=0.8)) <= 0.8 + 0.01
        started = asyncio.get_running_loop().time()
        assert await code(channel, SWEEP, request=b"sleep", timeout=None) == Code.DEADLINE_EXCEEDED
        assert 0.4 < asyncio.get_running_loop().time() - started < 2


async def test_retries(lab: Lab) -> None:
    """What did not start is tried again, what broke only if a repeat is harmless, what was answered never."""
    asked = Counter[bytes]()

    async def fail(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        asked[request] += 1
        if request == b"unavailable":
            await context.abort(Code.UNAVAILABLE, "not now")
        return b"store-0"

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.close()

    await lab.app("store-0", fail)
    await start(lab, "store-0", "store-canary-0", "front-0", weight=50)
    never = (("x-nourish-canary", "never"),)
    async with lab.proxies["front-0"].channel() as channel:
        assert await code(channel, GET, request=b"unavailable", metadata=never) == Code.UNAVAILABLE
        assert asked[b"unavailable"] == 1
        # The application is gone, its sidecar stands: no call can have started, so a method that is not safe to
        # repeat goes to the other instance too.
        await lab.apps["store-0"].stop()
        (lab.folder / "store-0/app.sock").unlink(missing_ok=True)
        assert await call(channel, SWEEP, metadata=never) == b"store-canary-0"
        # Something takes the calls and hangs up: they may have run.
        async with await asyncio.start_unix_server(hang_up, lab.folder / "store-0/app.sock"):
            assert await call(channel, GET, metadata=never) == b"store-canary-0"
            assert await code(channel, SWEEP, metadata=never) == Code.UNAVAILABLE
        # The whole instance is gone.
        await lab.proxies["store-0"].stop()
        assert {await call(channel, SWEEP, metadata=never) for _ in range(10)} == {b"store-canary-0"}

    async def logged() -> bool:
        retried = [line for line in lab.proxies["front-0"].access_log if line.get("attempts", 0) > 1]
        return {line["method"] for line in retried} >= {GET, SWEEP}

    assert await poll(logged)


async def test_loss_of_an_instance_under_load(lab: Lab) -> None:
    """A proxy dies with all the calls that it holds, and every idempotent call still gets its answer from the other."""
    await start(lab, "store-0", "store-canary-0", "front-0")
    answers: Counter[bytes] = Counter()
    dead = asyncio.Event()

    async def client(channel: grpc.aio.Channel) -> None:
        after = 0
        while after < 10:
            answers[await call(channel, GET)] += 1
            after += dead.is_set()

    async with lab.proxies["front-0"].channel() as channel, asyncio.TaskGroup() as clients:
        for _ in range(20):
            clients.create_task(client(channel))
        await poll(lambda: _answered(answers, 200))
        await lab.proxies["store-0"].stop()
        dead.set()
    assert answers[b"store-0"] > 100
    assert answers[b"store-canary-0"] >= 200
    assert await lab.proxies["front-0"].stat("cluster.store.stable.upstream_rq_retry_success")


async def test_withdrawn_instance_loses_no_call(lab: Lab) -> None:
    """Withdrawn, acknowledged, idle, stopped: in this order an instance goes without a failed call or a retry."""

    async def slow(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await asyncio.sleep(0.05)
        return b"store-1"

    await lab.app("store-1", slow)
    await start(lab, "store-0", "store-1", "front-0", weight=0)
    answers: Counter[bytes] = Counter()
    gone = asyncio.Event()

    async def client(channel: grpc.aio.Channel) -> None:
        while not gone.is_set():
            answers[await call(channel, SWEEP)] += 1  # not safe to repeat

    async with lab.proxies["front-0"].channel() as channel, asyncio.TaskGroup() as clients:
        for _ in range(5):
            clients.create_task(client(channel))
        await poll(lambda: _answered(answers, 50))
        assert not (await lab.report("store-0", wait=True)).waiting
        await poll(lambda: _idle(lab.proxies["store-1"]))
        await lab.proxies["store-1"].stop()
        before = answers.total()
        await poll(lambda: _answered(answers, before + 50))
        gone.set()
    assert answers[b"store-1"]
    assert not await lab.proxies["front-0"].stat("cluster.store.stable.upstream_rq_retry")


async def _idle(proxy: Proxy) -> bool:
    return not await proxy.stat("http.inbound.downstream_rq_active")


async def _answered(answers: Counter[bytes], count: int) -> bool:
    return answers.total() >= count


async def test_canary_without_weight_gets_no_failover(lab: Lab) -> None:
    """With a weight of 0 the canary never takes the stable subset's calls, even when that is dead."""
    await start(lab, "store-0", "store-canary-0", "front-0", weight=0)
    await lab.apps["store-0"].stop()
    async with lab.proxies["front-0"].channel() as channel:
        for _ in range(10):
            assert await code(channel, GET) == Code.UNAVAILABLE
        assert await call(channel, GET, metadata=(("x-nourish-canary", "always"),)) == b"store-canary-0"
    assert len(lab.apps["store-canary-0"].calls) == 1


async def test_bad_instance_is_ejected(lab: Lab) -> None:
    """An instance that passes its health check but fails every call is left out after a few of them."""

    async def fail(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(Code.INTERNAL, "broken")
        raise AssertionError

    await lab.app("store-0", fail)
    await start(lab, "store-0", "store-1", "front-0", weight=0)
    failed = 0
    async with lab.proxies["front-0"].channel() as channel:
        for _ in range(100):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call(channel, GET)
                continue
            failed += 1
    assert 0 < failed <= 10, failed


async def test_traffic_outlives_the_control_plane(lab: Lab) -> None:
    """With the control plane dead calls go on; when it is back with an empty memory the proxies keep what they have."""
    await start(lab, "store-0", "store-canary-0", "front-0")
    ports = [await lab.proxies[id].port() for id in ("store-0", "front-0")]
    async with lab.proxies["front-0"].channel() as channel:
        await lab.stop_control()
        assert await call(channel, GET) in (b"store-0", b"store-canary-0")
        await lab.start_control()
        await poll(lambda: lab.connected("store-0", "store-canary-0", "front-0"))
        assert await call(channel, GET) in (b"store-0", b"store-canary-0")
        assert (await lab.apply(values(100))).applied  # still no endpoints: nothing is published
        assert await call(channel, GET, metadata=(("x-nourish-canary", "never"),)) == b"store-0"
        assert not (await lab.report("store-0", "store-canary-0", wait=True)).waiting
        assert {await call(channel, GET) for _ in range(50)} == {b"store-canary-0"}
    assert ports == [await lab.proxies[id].port() for id in ("store-0", "front-0")]


async def test_inbound_keeps_its_port(lab: Lab) -> None:
    """A changed inbound listener keeps the port that the kernel chose for port 0, and loses no call."""
    await start(lab, "store-0", "front-0", weight=0)
    store = lab.proxies["store-0"]
    port, updates = await store.port(), await store.stat("listener_manager.lds.update_success")
    async with lab.proxies["front-0"].channel() as channel:
        assert (await lab.apply(values(0, calls="[]"))).applied  # store has one caller fewer: its RBAC changes
        assert await poll(lambda: _more(store, updates))
        assert await store.port() == port
        assert await code(channel, GET) == Code.PERMISSION_DENIED
        assert (await lab.apply(values(0))).applied
        assert await store.port() == port
        await lab.healthy("front-0", "store-0")
        assert await call(channel, GET) == b"store-0"


async def _more(proxy: Proxy, than: int) -> bool:
    return await proxy.stat("listener_manager.lds.update_success") > than
