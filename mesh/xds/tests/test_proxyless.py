"""Processes without a sidecar, under the real control plane: among themselves, and with real Envoys on either side."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.type.matcher.v3 import path_pb2
from nourish.mesh.v1 import control_pb2

from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.identity.rotation import rotate_root
from mesh.local.certificates import lagging
from mesh.local.paths import Paths
from mesh.runtime.proxyless import credentials, rules
from mesh.xds import pb, proxyless
from mesh.xds.plan import Materials, Node, Plan
from mesh.xds.tests import bare
from mesh.xds.tests.lab import Lab, call, code, poll
from mesh.xds.tests.test_mesh import ASK, GET, PUT, SWEEP, bearer, direct

Code = grpc.StatusCode
CERTIFICATE, USER, SCOPES = "x-forwarded-client-cert", "x-nourish-user", "x-nourish-scopes"


def values(*, front: str = "sidecar", store: str = "sidecar", weight: int = 0, calls: str = "[store]") -> str:
    return f"""
services:
  store:
    dataPlane: {store}
    canary: {{ replicas: 1, weight: {weight} }}
  front:
    dataPlane: {front}
    calls: {calls}
"""


async def state(lab: Lab, id: str) -> control_pb2.Proxy:
    mesh = await lab.control.GetMesh(control_pb2.GetMeshRequest())
    return next(proxy for proxy in mesh.proxies if proxy.node == id)


async def stores(lab: Lab, *ids: str) -> None:
    """Stores behind sidecars."""
    for id in ids:
        await lab.app(id)
        await lab.proxy(id, subset="canary" if "canary" in id else "stable")
    await lab.report(*ids)


async def test_calls_services_behind_sidecars_as_itself(lab: Lab) -> None:
    """gRPC takes all that it is told; weights, header, identity and deadline hold at a real sidecar."""
    await lab.report()
    assert (await lab.apply(values(front="proxyless"))).applied
    await stores(lab, "store-0", "store-canary-0")
    async with bare.client(lab, "front-0") as channel:
        assert await poll(lambda: call(channel, GET)) == b"store-0"
        for weight in (10, 90):
            answer = await lab.apply(values(front="proxyless", weight=weight))
            assert (answer.applied, list(answer.proxies), list(answer.errors)) == (True, ["front-0"], [])
            await poll(lambda: call(channel, GET))
            names = Counter([(await call(channel, GET)).decode() for _ in range(400)])
            assert abs(names["store-canary-0"] / 400 - weight / 100) < 0.075
        for value, name in (("always", b"store-canary-0"), ("never", b"store-0")):
            assert {await call(channel, GET, metadata=(("x-nourish-canary", value),)) for _ in range(20)} == {name}
        _, headers = lab.apps["store-0"].calls[-1]
        assert headers[CERTIFICATE].endswith("URI=spiffe://nourish.local/ns/nourish/sa/front")
        assert await code(channel, ASK) == Code.UNAVAILABLE  # no route: it may not call itself
        lab.apps["store-0"].handler = lab.apps["store-canary-0"].handler = never
        assert await code(channel, SWEEP) == Code.DEADLINE_EXCEEDED
        proxy = await state(lab, "front-0")
        assert (proxy.synced, proxy.error, set(proxy.versions)) == (True, "", {"cds", "eds", "lds", "rds"})


async def test_instances_come_and_go_under_calls(lab: Lab) -> None:
    """No call is lost, and once a withdrawal is acknowledged none is sent there."""
    await lab.report()
    assert (await lab.apply(values(front="proxyless"))).applied
    await stores(lab, "store-0", "store-1")
    async with bare.client(lab, "front-0") as channel:
        await poll(lambda: call(channel, GET))
        done, names = asyncio.Event(), Counter[bytes]()

        async def calls() -> None:
            while not done.is_set():
                names[await call(channel, GET)] += 1

        async def come_and_go() -> None:
            for stays, goes in (("store-0", "store-1"), ("store-1", "store-0")) * 5:
                assert not (await lab.report(stays, wait=True)).waiting
                assert (await state(lab, "front-0")).synced
                before = names.total()
                await poll(lambda: asyncio.sleep(0, names.total() > before + 20))  # noqa: B023
                seen = len(lab.apps[goes].calls)
                await poll(lambda: asyncio.sleep(0, names.total() > before + 60))  # noqa: B023
                assert len(lab.apps[goes].calls) == seen

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(calls())
            try:
                await come_and_go()
            finally:
                done.set()
        assert set(names) == {b"store-0", b"store-1"}


async def never(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await asyncio.Event().wait()
    return b""


async def test_serves_a_sidecar_as_its_own_would(lab: Lab, identity: Path) -> None:
    """It is told the truth about caller and user, whatever is claimed; a bad token ends the call."""
    await lab.report()
    assert (await lab.apply(values(store="proxyless"))).applied
    async with bare.server(lab, "store-0") as store:
        await lab.proxy("front-0")
        await lab.proxies["front-0"].port()
        await lab.report("store-0", wait=True)
        await lab.healthy("front-0", "store-0")
        assert (await state(lab, "store-0")).synced
        async with lab.proxies["front-0"].channel() as channel:
            assert await call(channel, GET) == b"store-0"
            assert await call(channel, PUT, metadata=bearer(identity, "alice", "store.write")) == b"store-0"
            _, headers = store.app.calls[-1]
            assert (headers[USER], headers[SCOPES].split()) == ("alice", ["store.write"])
            assert headers[CERTIFICATE] == "URI=spiffe://nourish.local/ns/nourish/sa/front"
            assert headers["x-request-id"]
        async with await direct(identity, store, "front") as channel:  # type: ignore[arg-type]
            lies = ((USER, "mallory"), (SCOPES, "all"), (CERTIFICATE, "URI=spiffe://nourish.local/ns/nourish/sa/edge"))
            await call(channel, GET, metadata=lies)
            _, headers = store.app.calls[-1]
            assert USER not in headers
            assert SCOPES not in headers
            assert headers[CERTIFICATE].endswith("/sa/front")
            expired = tokens.mint(identity, "alice", lifetime=-tokens.DEFAULT_LIFETIME)
            good = dict(bearer(identity, "alice"))["authorization"]
            for bad in (f"Bearer {expired}", "Bearer nonsense", good[:-6] + "AAAAAA"):
                assert await code(channel, GET, metadata=(("authorization", bad),)) == Code.UNAUTHENTICATED


async def test_a_wrong_identity_is_refused_on_either_side(lab: Lab, identity: Path) -> None:
    """By the server, as each caller may use what the contract and `calls` say; by the client, if the callee is not."""
    await lab.report()
    both = {"front": "proxyless", "store": "proxyless"}
    assert (await lab.apply(values(**both))).applied
    async with bare.server(lab, "store-0") as store, bare.client(lab, "front-0") as front:
        await lab.report("store-0", wait=True)
        assert await poll(lambda: call(front, GET)) == b"store-0"
        async with await direct(identity, store, "intruder") as channel:  # type: ignore[arg-type]
            for path in (GET, "/grpc.health.v1.Health/Check"):
                assert await code(channel, path) == Code.PERMISSION_DENIED
        async with await direct(identity, store, None) as channel:  # type: ignore[arg-type]
            assert await code(channel, GET) == Code.UNAVAILABLE
        async with await direct(identity, store, "edge") as channel:  # type: ignore[arg-type]
            assert await call(channel, GET) == b"store-0"
            assert await code(channel, SWEEP) == Code.PERMISSION_DENIED
        async with grpc.aio.insecure_channel(f"unix:{lab.folder}/store-0.sock") as channel:
            assert await call(channel, "/grpc.health.v1.Health/Check") == b"\x08\x01"
            assert await code(channel, GET) == Code.PERMISSION_DENIED
        # An edit is in force at the callee when it is applied: it acknowledges its rules.
        answer = await lab.apply(values(**both, calls="[]"))
        assert set(answer.proxies) == {"front-0", "store-0"}
        async with await direct(identity, store, "front") as channel:  # type: ignore[arg-type]
            assert await code(channel, GET) == Code.PERMISSION_DENIED
    assert (await lab.apply(values(**both))).applied
    await lab.app("store-0")
    await lab.proxy("store-0", identity="intruder")
    await lab.report("store-0")
    async with bare.client(lab, "front-0") as front:
        assert await code(front, GET, timeout=3) == Code.UNAVAILABLE


async def test_outlives_the_control_plane(lab: Lab) -> None:
    """Calls go on without one, and an edit by the next reaches both ends."""
    both = {"front": "proxyless", "store": "proxyless"}
    await lab.report()
    assert (await lab.apply(values(**both))).applied
    async with bare.server(lab, "store-0"), bare.client(lab, "front-0") as front:
        await lab.report("store-0", wait=True)
        assert await poll(lambda: call(front, GET)) == b"store-0"
        await lab.stop_control()
        assert {await call(front, GET) for _ in range(50)} == {b"store-0"}
        await lab.start_control()
        assert (await lab.apply(values(**both))).applied
        await lab.report("store-0")
        await poll(lambda: lab.connected("front-0", "store-0"))
        assert (await lab.apply(values(**both, calls="[]"))).applied
        assert await code(front, GET) in (Code.UNAVAILABLE, Code.PERMISSION_DENIED)


def unknown_filter(http: HttpConnectionManager) -> None:
    http.http_filters.insert(0, http.http_filters[-1])


def deny(http: HttpConnectionManager) -> None:
    change(http, lambda rbac: setattr(rbac.rules, "action", rbac_pb2.RBAC.Action.DENY))


def condition(http: HttpConnectionManager) -> None:
    change(http, lambda rbac: rbac.rules.policies["edge"].condition.const_expr.SetInParent())


def any_caller(http: HttpConnectionManager) -> None:
    change(http, lambda rbac: setattr(rbac.rules.policies["edge"].principals.add(), "any", True))


def path_by_regex(http: HttpConnectionManager) -> None:
    expression = path_pb2.PathMatcher(path=pb.regex("/.*"))
    change(http, lambda rbac: rbac.rules.policies["edge"].permissions[0].or_rules.rules.add(url_path=expression))


def change(http: HttpConnectionManager, how: Callable[[RBAC], object]) -> None:
    rbac = RBAC()
    http.http_filters[0].typed_config.Unpack(rbac)
    how(rbac)
    http.http_filters[0].typed_config.Pack(rbac)


@pytest.mark.parametrize("how", [unknown_filter, deny, condition, any_caller, path_by_regex])
def test_rules_that_the_runtime_does_not_know_are_refused_as_a_whole(
    how: Callable[[HttpConnectionManager], None], plan: Plan, identity: Path
) -> None:
    plan = replace(plan, materials=Materials((identity / "jwks.json").read_text()))
    (_, inbound) = proxyless.listeners(plan.node(Node.without_proxy("store-0", "store", "stable")))
    assert rules.read(inbound).allow("spiffe://nourish.local/ns/nourish/sa/front", GET)
    http = HttpConnectionManager()
    inbound.filter_chains[0].filters[0].typed_config.Unpack(http)
    how(http)
    inbound.filter_chains[0].filters[0].typed_config.Pack(http)
    with pytest.raises(ValueError, match="known"):
        rules.read(inbound)


@pytest.fixture
def home(short_dir: Path) -> Paths:
    """A mesh of its own, with an authority that has issued for front and store."""
    paths = Paths(short_dir / "home")
    authority = CertificateAuthority(paths.home / "identity")
    for service in ("front", "store"):
        authority.issue(service, f"spiffe://nourish.local/ns/nourish/sa/{service}")
    (paths.identity / "jwks.json").write_text(tokens.public_jwks(paths.identity))
    return paths


async def test_the_root_is_replaced_under_calls(lab: Lab, home: Paths) -> None:
    """With handshakes several times a second no call fails: each step waits until both ends have taken it."""
    lab.identity = home.identity
    authority = CertificateAuthority(home.identity)
    before = authority.root.number
    await lab.report()
    assert (await lab.apply(values(front="proxyless", store="proxyless"))).applied
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(bare.server(lab, "store-0", connection_ms=200))
        front = await stack.enter_async_context(bare.client(lab, "front-0"))
        stack.callback(shutil.rmtree, home.run, ignore_errors=True)
        for id in ("front-0", "store-0"):  # as two processes would lie there; both are this one
            home.instance(id).mkdir(parents=True)
            shutil.copy(lab.folder / f"{id}.json", home.xds_bootstrap(id))
            home.app_socket(id).symlink_to(lab.folder / "store-0.sock")
            folder = home.identity / id.partition("-")[0]
            taken = asyncio.create_task(credentials.leave_word(folder, home.instance(id) / credentials.TAKEN))
            stack.callback(taken.cancel)
        await lab.report("store-0", wait=True)
        await poll(lambda: call(front, GET))
        rotating = asyncio.create_task(rotate_root(authority, lambda: lagging(home)))
        calls = 0
        while not rotating.done():
            assert await call(front, GET) == b"store-0"
            calls += 1
            await asyncio.sleep(0.005)
        await rotating
        assert calls > 100
        assert [root.number for root in authority.roots] == [before + 1]
        for _ in range(100):
            assert await call(front, GET) == b"store-0"
            await asyncio.sleep(0.005)
