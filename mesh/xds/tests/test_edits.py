"""An edit is a transaction: every proxy has it, or none."""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from nourish.mesh.v1 import control_pb2

from mesh import engine
from mesh.xds import fleet
from mesh.xds.snapshot import RDS, Snapshot
from mesh.xds.tests.lab import ENVOY, Lab, call, poll
from mesh.xds.tests.test_mesh import GET, start, values


async def test_nack_is_undone(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses an edit brings the last good configuration back, and the answer says what it said."""
    await start(lab, "store-0", "store-canary-0", "front-0")
    compile_node = fleet.compile_node

    def compile_badly(plan: Any) -> Snapshot:
        """What a defect of the compiler would give for one weight: routes that Envoy refuses."""
        snapshot = compile_node(plan)
        own = str(lab.folder) in plan.node.egress_socket  # on this machine alone, where no check before can see it
        if plan.node.service == "front" and own and plan.callees[0].weight == 66:
            config = any_pb2.Any()
            config.CopyFrom(snapshot.resources[RDS]["egress"])
            config.value += config.value  # the virtual host twice
            bad = {**snapshot.resources, RDS: {**snapshot.resources[RDS], "egress": config}}
            return replace(snapshot, resources=bad)
        return snapshot

    monkeypatch.setattr(fleet, "compile_node", compile_badly)
    before = await lab.control.GetMesh(control_pb2.GetMeshRequest())
    answer = await lab.apply(values(66))
    assert not answer.applied
    assert answer.errors[0].startswith("values.yaml:4: services.store.canary.weight: front-0 refused it: rds: ")
    assert "wildcard domain" in answer.errors[0]
    assert answer.revision == before.revision
    after = await lab.control.GetMesh(control_pb2.GetMeshRequest())
    assert after.canary_weights == {"store": 10, "front": 0}
    assert all(proxy.synced and not proxy.error for proxy in after.proxies)
    assert {p.node: dict(p.versions) for p in after.proxies} == {p.node: dict(p.versions) for p in before.proxies}
    async with lab.proxies["front-0"].channel() as channel:
        assert await call(channel, GET, metadata=(("x-nourish-canary", "never"),)) == b"store-0"
    assert (await lab.apply(values(67))).applied


@pytest.mark.parametrize("more", ["", "limits: { maxRequests: 7 }"])
async def test_envoy_judges_first(lab: Lab, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    """What Envoy would refuse reaches no proxy; of several changed values, the one that it refuses is named."""
    await start(lab, "store-0", "front-0")
    compile_node = fleet.compile_node

    def compile_badly(plan: Any) -> Snapshot:
        snapshot = compile_node(plan)
        if plan.node.service == "front" and plan.callees[0].weight == 66:
            config = any_pb2.Any()
            config.CopyFrom(snapshot.resources[RDS]["egress"])
            config.value += config.value  # the virtual host twice
            bad = {**snapshot.resources, RDS: {**snapshot.resources[RDS], "egress": config}}
            return replace(snapshot, resources=bad)
        return snapshot

    monkeypatch.setattr(fleet, "compile_node", compile_badly)
    before = await lab.control.GetMesh(control_pb2.GetMeshRequest())
    answer = await lab.apply(values(66, more=more))
    assert not answer.applied
    assert len(answer.errors) == 1
    assert answer.errors[0].startswith("values.yaml:4: services.store.canary.weight: Envoy refuses it: Only a single")
    assert "/" not in answer.errors[0].partition("refuses it")[2]
    after = await lab.control.GetMesh(control_pb2.GetMeshRequest())
    assert list(after.proxies) == list(before.proxies)
    assert (await lab.apply(values(67, more=more))).changes[0] == "store: canary 10 % -> 67 %, 1 proxy"


async def test_a_death_of_the_judge_is_no_verdict(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are not blamed for it, the signal is named, and the same edit is taken once Envoy lives."""
    judge, dies = lab.folder / "judge", lab.folder / "dies"
    judge.write_text(f'#!/bin/sh\n[ -e {dies} ] && kill -s SEGV $$\nexec {ENVOY} "$@"\n')
    judge.chmod(0o700)
    dies.touch()
    monkeypatch.setattr(engine, "envoy", lambda: judge)
    await lab.stop_control()
    await lab.start_control()
    answer = await lab.apply(values(10))
    assert (answer.applied, answer.again) == (False, True)
    (error,) = answer.errors
    assert error.startswith("Envoy was ended by SIGSEGV while it judged it: the edit was not judged")
    dies.unlink()
    assert (await lab.apply(values(10))).applied


async def test_an_edit_made_from_an_older_revision_is_refused(lab: Lab) -> None:
    """Two who edit at once: the second is told, and does not undo the first unseen."""
    await lab.report()
    first = await lab.apply(values(10))
    assert (await lab.apply(values(20), base_revision=first.revision)).applied
    late = await lab.apply(values(30), base_revision=first.revision)
    assert not late.applied
    assert "another edit came between" in late.errors[0]


async def test_silence_is_undone(lab: Lab) -> None:
    """A proxy that does not answer in time undoes the edit; the proxies that took it get the old one again."""
    await start(lab, "store-0", "store-canary-0", "front-0", "front-1")
    frozen = lab.proxies["front-1"].process
    frozen.send_signal(signal.SIGSTOP)
    try:
        answer = await lab.apply(values(90), timeout=duration_pb2.Duration(seconds=1))
    finally:
        frozen.send_signal(signal.SIGCONT)
    assert (answer.applied, answer.again) == (False, True)
    assert answer.errors == ["values.yaml:4: services.store.canary.weight: front-1 did not answer within 1 s"]

    async def restored() -> bool:
        mesh = await lab.control.GetMesh(control_pb2.GetMeshRequest())
        return all(proxy.synced for proxy in mesh.proxies) and mesh.canary_weights["store"] == 10

    assert await poll(restored)
    assert (await lab.apply(values(90))).applied


async def test_caller_goes_away(lab: Lab) -> None:
    """An edit whose caller gives up is still undone if a proxy does not take it: nothing half-applied stays."""
    await start(lab, "store-0", "front-0", "front-1")
    frozen = lab.proxies["front-1"].process
    frozen.send_signal(signal.SIGSTOP)
    try:
        edit = asyncio.create_task(lab.apply(values(90), timeout=duration_pb2.Duration(seconds=1)))
        await poll(lambda: _weight(lab, 90))
        edit.cancel()
        await poll(lambda: _weight(lab, 10))
    finally:
        frozen.send_signal(signal.SIGCONT)
    assert (await lab.apply(values(90))).applied


async def test_what_is_refused_at_once(lab: Lab) -> None:
    """Values that make no sense reach no proxy, and the answer names the line; a dry run changes nothing."""
    await lab.report()
    first = await lab.apply(values(10))
    assert first.applied
    bad = await lab.apply(values(10, calls="[stroe]"))
    assert not bad.applied
    assert bad.errors[0].startswith("values.yaml:")
    missing = await lab.apply("services: { store: {} }")  # front has a contract and no stanza
    assert missing.errors[0].startswith("values.yaml:1: services.front: is missing")
    dry = await lab.apply(values(20), dry_run=True)
    assert (dry.applied, list(dry.changes)) == (False, ["store: canary 10 % -> 20 %, no proxy"])
    same = await lab.apply("# the same in other words\n" + values(10))
    assert (same.applied, list(same.changes), same.revision) == (True, [], first.revision)
    with pytest.raises(grpc.aio.AioRpcError, match="files"):
        await lab.control.ApplyValues(control_pb2.ApplyValuesRequest())


async def test_withdrawal_does_not_wait_for_an_edit(lab: Lab) -> None:
    """While an edit waits for a silent proxy, endpoints still reach the others; restoring keeps the new endpoints."""
    await start(lab, "store-0", "store-1", "front-0", "front-1", weight=0)
    frozen = lab.proxies["front-1"].process
    frozen.send_signal(signal.SIGSTOP)
    try:
        edit = asyncio.create_task(lab.apply(values(90), timeout=duration_pb2.Duration(seconds=2)))
        await poll(lambda: _weight(lab, 90))
        await lab.report("store-1")
        await lab.healthy("front-0", "store-1")
        assert not edit.done()
        assert not (await edit).applied
    finally:
        frozen.send_signal(signal.SIGCONT)
    await lab.healthy("front-0", "store-1")
    await lab.healthy("front-1", "store-1")


async def test_a_report_waits_for_what_an_earlier_one_brought(lab: Lab) -> None:
    """Who waits is told of every proxy that has not answered, though nothing of this report was new."""
    await start(lab, "store-0", "store-1", "front-0", weight=0)
    frozen = lab.proxies["front-0"].process
    frozen.send_signal(signal.SIGSTOP)
    try:
        assert not (await lab.report("store-1")).waiting
        assert (await lab.report("store-1", wait=True, seconds=1)).waiting == ["front-0"]
    finally:
        frozen.send_signal(signal.SIGCONT)
    assert not (await lab.report("store-1", wait=True)).waiting


async def test_scope_and_node_config(lab: Lab) -> None:
    """A sidecar has the clusters that it calls and no others; its configuration can be read as JSON."""
    await start(lab, "store-0", "front-0", weight=0)
    config = await lab.control.GetNodeConfig(control_pb2.GetNodeConfigRequest(node="store-0"))
    assert [cluster["name"] for cluster in json.loads(config.json)["cds"]] == ["app", "support"]
    config = await lab.control.GetNodeConfig(control_pb2.GetNodeConfigRequest(node="front-0"))
    assert {c["name"] for c in json.loads(config.json)["cds"]} == {"app", "support", "store.stable", "store.canary"}
    with pytest.raises(grpc.aio.AioRpcError, match="known: front-0, store-0"):
        await lab.control.GetNodeConfig(control_pb2.GetNodeConfigRequest(node="nobody-0"))
    assert (await lab.apply(values(0, replicas=0))).applied
    assert await poll(lambda: _clusters(lab, {"store.stable"}))
    assert (await lab.apply(values(0, calls="[]", replicas=0))).applied
    assert await poll(lambda: _clusters(lab, set()))


async def _weight(lab: Lab, weight: int) -> bool:
    return (await lab.control.GetMesh(control_pb2.GetMeshRequest())).canary_weights["store"] == weight


async def _clusters(lab: Lab, names: set[str]) -> bool:
    found = await lab.proxies["front-0"].admin("/clusters?format=json")
    return {c["name"] for c in found["cluster_statuses"]} == names | {"app", "support", "xds"}
