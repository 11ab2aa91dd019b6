"""1,000 proxies on one control plane: an edit to its last ACK, its cost, and all of them coming back at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import yaml
from google.protobuf.duration_pb2 import Duration
from nourish.mesh.v1.control_pb2 import ApplyValuesRequest, ApplyValuesResponse, GetMeshRequest, ValuesFile
from nourish.mesh.v1.control_pb2_grpc import ControlServiceStub
from nourish.mesh.v1.registry_pb2 import Endpoint, ReportEndpointsRequest
from nourish.mesh.v1.registry_pb2_grpc import RegistryServiceStub

from bench import processes, proxies
from mesh.identity import tokens
from mesh.topology import EDGE
from mesh.values import CHART_VALUES

EDITS = int(os.environ.get("BENCH_EDITS", "20"))
GOAL_SECONDS = 1.0
SECONDS = 60
POLL_SECONDS = 0.1
Sent = dict[str, dict[str, int]]  # by service: responses, resources, bytes


def run() -> dict[str, Any]:
    """Connects them, edits food's weight, and kills the control plane; returns times, costs and bytes."""
    with tempfile.TemporaryDirectory(prefix="nourish-bench-") as folder:
        return asyncio.run(_run(Path(folder)))


def report(results: dict[str, Any]) -> list[str]:
    """Times and costs, and bytes by kind of proxy."""
    r, edit, again = results, results["edit"], results["reconnect"]
    goal = "met" if edit["push_seconds"]["worst"] < GOAL_SECONDS else "NOT met"
    push, whole = edit["push_seconds"], edit["call_seconds"]
    lines = [
        "## A fleet of simulated proxies",
        "",
        f"{r['proxies']:,} incremental ADS streams, {r['endpoints']} endpoints, one control plane. "
        f"{edit['edits']} edits of food's weight, each of which reaches {edit['reached']}:",
        "",
        "| | median | worst |",
        "| --- | ---: | ---: |",
        f"| push to last ACK (goal < {GOAL_SECONDS:g} s, {goal}) | {push['median']:.2f} s | {push['worst']:.2f} s |",
        f"| the whole call, Envoy's validation too | {whole['median']:.2f} s | {whole['worst']:.2f} s |",
        f"| CPU of the control plane | {edit['cpu_seconds']['median']:.2f} s | {edit['cpu_seconds']['worst']:.2f} s |",
        "",
        f"Memory of the control plane (PSS): {r['memory_mb']['alone']:.0f} MB alone, {r['memory_mb']['connected']:.0f} "
        f"MB with all connected, {r['memory_mb']['after']:.0f} MB after the edits. First connect of all, everything "
        f"sent: {r['connect']['seconds']:.1f} s, {r['connect']['cpu_seconds']:.1f} s of CPU.",
        f"Killed and started again with an empty memory: values and endpoints are in after "
        f"{again['published_seconds']:.1f} s, all are connected and synced after {again['synced_seconds']:.1f} s, "
        f"{again['cpu_seconds']:.1f} s of CPU; {again['responses']} responses were sent: food's weight had changed "
        "meanwhile, and nothing else.",
        "",
        "| a proxy of | all it has, bytes | one edit, bytes | of it |",
        "| --- | ---: | ---: | ---: |",
    ]
    for service, full in r["bytes_full"].items():
        delta = r["bytes_edit"].get(service, 0)
        lines.append(f"| {service} | {full:,.0f} | {delta:,.0f} | {delta / full:.1%} |")
    return lines


async def _run(folder: Path) -> dict[str, Any]:
    socket, jwks = folder / "control.sock", folder / "jwks.json"
    jwks.write_text(tokens.public_jwks(folder))
    command = ("mesh.xds", "--socket", f"unix:{socket}", "--jwks", str(jwks))
    async with _control(socket) as control:
        with _simulated(socket) as fleet:
            with processes.server(*command, ready=socket) as pid:
                await control.tell()
                results = await _measure(control, fleet, pid)
                fleet.sent()
                os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            socket.unlink()
            control.weight += 1  # the one thing that is new to the proxies when it is back
            with processes.server(*command, ready=socket) as pid:
                await control.tell()
                published = time.monotonic() - killed
                synced = await control.synced() - killed
                again = {"published_seconds": published, "synced_seconds": synced}
                again["cpu_seconds"] = processes.cpu_seconds([pid])
                again["responses"] = sum(s["responses"] for s in fleet.sent().values())
    return {**results, "reconnect": again}


async def _measure(control: _Control, fleet: _Simulated, pid: int) -> dict[str, Any]:
    memory, began, cpu = {"alone": processes.resident_mb(pid)}, time.monotonic(), processes.cpu_seconds([pid])
    fleet.start()
    connect = {"seconds": await control.synced() - began, "cpu_seconds": processes.cpu_seconds([pid]) - cpu}
    memory["connected"] = processes.resident_mb(pid)
    full = fleet.sent()
    edit = await _edits(control, pid)
    memory["after"] = processes.resident_mb(pid)
    each = {s: sum(n for (name, _), n in proxies.COUNTS.items() if name == s) for s, _ in proxies.COUNTS}
    return {
        "proxies": sum(each.values()),
        "endpoints": sum(each.values()) - each[EDGE],
        "connect": connect,
        "memory_mb": memory,
        "edit": edit,
        "bytes_full": {s: f["bytes"] / each[s] for s, f in full.items()},
        "bytes_edit": {s: f["bytes"] / each[s] / EDITS for s, f in fleet.sent().items()},
    }


async def _edits(control: _Control, pid: int) -> dict[str, Any]:
    """Every weight is new, so that Envoy judges each edit."""
    push, whole, cpu, reached = [], [], [], 0
    for weight in range(control.weight + 1, control.weight + 1 + EDITS):
        began, before = time.monotonic(), processes.cpu_seconds([pid])
        control.weight = weight
        answer = await control.apply()
        whole.append(time.monotonic() - began)
        push.append(answer.converged_in.ToTimedelta().total_seconds())
        cpu.append(processes.cpu_seconds([pid]) - before)
        reached = len(answer.proxies)
    figures = {"push_seconds": push, "call_seconds": whole, "cpu_seconds": cpu}
    return {"edits": EDITS, "reached": reached, **{k: _figures(v) for k, v in figures.items()}}


def _figures(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "worst": max(values)}


class _Control:
    """The runner's part: values and endpoints, given again after each start."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._control, self._registry = ControlServiceStub(channel), RegistryServiceStub(channel)
        self._values = yaml.safe_load(CHART_VALUES.read_text())
        self.weight: int = self._values["services"]["food"]["canary"]["weight"]

    async def tell(self) -> None:
        await self._control.GetMesh(GetMeshRequest(), timeout=SECONDS, wait_for_ready=True)
        await self.apply()
        await self._registry.ReportEndpoints(ReportEndpointsRequest(source="bench", endpoints=_endpoints()))

    async def apply(self) -> ApplyValuesResponse:
        self._values["services"]["food"]["canary"]["weight"] = self.weight
        file = ValuesFile(path="values.yaml", content=yaml.safe_dump(self._values))
        request = ApplyValuesRequest(files=[file], timeout=Duration(seconds=SECONDS))
        answer = await self._control.ApplyValues(request, timeout=SECONDS + 5)
        if not answer.applied:
            raise RuntimeError("; ".join(answer.errors))
        return answer

    async def synced(self) -> float:
        """Waits until the control plane has every proxy connected and acknowledged; returns when."""
        async with asyncio.timeout(SECONDS):
            while True:
                mesh = await self._control.GetMesh(GetMeshRequest())
                if sum(p.synced for p in mesh.proxies) == sum(proxies.COUNTS.values()):
                    return time.monotonic()
                await asyncio.sleep(POLL_SECONDS)


@contextlib.asynccontextmanager
async def _control(socket: Path) -> Any:
    quick = (("grpc.max_reconnect_backoff_ms", 100),)
    async with grpc.aio.insecure_channel(f"unix:{socket}", quick) as channel:
        yield _Control(channel)


def _endpoints() -> list[Endpoint]:
    behind = [i for i in proxies.instances() if i.service != EDGE]
    return [
        Endpoint(
            service=i.service,
            instance=i.id,
            subset=i.subset,
            address=f"10.0.{n // 250}.{n % 250 + 1}",
            port=proxies.INBOUND,
        )
        for n, i in enumerate(behind)
    ]


class _Simulated:
    """The process of the proxies."""

    def __init__(self, socket: Path) -> None:
        self._command = [sys.executable, "-m", "bench.proxies", f"unix:{socket}"]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def sent(self) -> Sent:
        """What they were sent since the last time."""
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: Sent = json.loads(self._process.stdout.readline())
        return found

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _simulated(socket: Path) -> Iterator[_Simulated]:
    simulated = _Simulated(socket)
    try:
        yield simulated
    finally:
        simulated.stop()
