"""The chart as Helm's own engine renders it, and its control plane and proxies as processes of this machine."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import helm_python
import yaml
from nourish.mesh.v1 import control_pb2, registry_pb2
from nourish.mesh.v1.control_pb2_grpc import ControlServiceStub
from nourish.mesh.v1.registry_pb2_grpc import RegistryServiceStub

from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.local.envoy import Envoy
from mesh.local.process import Child

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "helm"
CONTROL = "control-plane"
Documents = list[dict[str, Any]]


def render(overlay: str = "{}") -> Documents:
    with helm_python.Chart.load(CHART) as chart:
        manifests = chart.render(helm_python.values_from_yaml(overlay), name="nourish", namespace="elsewhere")
    return [document for text in manifests.values() for document in yaml.safe_load_all(text) if document]


def of_kind(documents: Documents, kind: str) -> dict[str, dict[str, Any]]:
    """By name; a name twice would be one resource too many."""
    found = [d for d in documents if d["kind"] == kind]
    names = Counter(d["metadata"]["name"] for d in found)
    assert not [name for name, times in names.items() if times > 1]
    return {d["metadata"]["name"]: d for d in found}


def pods(documents: Documents) -> dict[str, dict[str, Any]]:
    return {name: d["spec"]["template"]["spec"] for name, d in of_kind(documents, "Deployment").items()}


def bootstraps(documents: Documents) -> dict[str, str]:
    """The bootstrap that each Deployment's proxy gets."""
    config = of_kind(documents, "ConfigMap")
    names = {
        name: next(v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "envoy")
        for name, pod in pods(documents).items()
    }
    return {name: config[source]["data"]["bootstrap.yaml"] for name, source in names.items()}


class Cluster:
    """The chart's control plane and proxies as processes of this machine: other folders, ports and address, no more."""

    def __init__(self, overlay: str, folder: Path, stack: AsyncExitStack) -> None:
        self.documents, self.folder, self._stack = render(overlay), folder, stack
        self.authority = CertificateAuthority(folder / "identity")

    async def proxy(self, name: str, service: str, listener: str, control_port: int = 0) -> Envoy:
        """Starts the Envoy of a Deployment, with an identity; returns when its listener is bound."""
        pod = self.folder / name
        pod.mkdir()
        identity = self.authority.issue(service, f"spiffe://nourish.local/ns/nourish/sa/{service}").folder
        text = bootstraps(self.documents)[name]
        for in_a_pod, here in (
            ("/run/nourish", str(pod)),
            ("/etc/nourish/identity", str(identity)),
            ("0.0.0.0", "127.0.0.1"),
            ("control-plane.nourish.svc", "127.0.0.1"),
            ("port_value: 8080", f"port_value: {control_port}"),
            ("inbound_port: 8080", "inbound_port: 0"),
        ):
            text = text.replace(in_a_pod, here)
        (pod / "rendered.yaml").write_text(text)
        envoy = Envoy(pod / "rendered.yaml", {}, folder=pod, log=pod / "envoy.log", listener=listener)
        self._stack.push_async_callback(envoy.stop)
        await envoy.start()
        return envoy

    async def control_plane(self) -> int:
        """Starts the control plane as its Deployment says and tells it the values; returns its proxy's port."""
        proxy = await self.proxy(CONTROL, CONTROL, "control")
        (self.folder / "jwks.json").write_text(tokens.public_jwks(self.folder / "identity"))
        (app,) = pods(self.documents)[CONTROL]["containers"]
        socket = f"unix:{self.folder}/{CONTROL}/control.sock"
        args = [
            socket if "control.sock" in a else f"{self.folder}/jwks.json" if "jwks.json" in a else a
            for a in app["args"]
        ]
        argv = [sys.executable, *app["command"][1:], *args]
        process = Child(argv, self.folder / "control.log", env=os.environ, cwd=ROOT)
        self._stack.push_async_callback(process.stop, 5)
        await process.start()
        values = of_kind(self.documents, "ConfigMap")["values"]["data"]["values.yaml"]
        async with grpc.aio.insecure_channel(socket) as channel:
            stub = ControlServiceStub(channel)
            edit = control_pb2.ApplyValuesRequest(files=[{"path": "values.yaml", "content": values}])
            applied = await stub.ApplyValues(edit, wait_for_ready=True, timeout=30)
            assert applied.applied, applied.errors
            await RegistryServiceStub(channel).ReportEndpoints(
                registry_pb2.ReportEndpointsRequest(source="test"), timeout=30
            )
        assert proxy.port
        return proxy.port


@asynccontextmanager
async def cluster(overlay: str = "{}") -> AsyncIterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="nourish-") as folder:
        async with AsyncExitStack() as stack:
            yield Cluster(overlay, Path(folder), stack)
