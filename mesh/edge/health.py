"""Each service's health as the edge's Envoy sees it: its own active checks, read from its admin socket.

Nothing asks the control plane or a service: `/health` is true even when the control plane is dead.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from http.client import HTTPResponse
from typing import Any

from nourish.mesh.v1.edge_pb2 import (
    HEALTH_STATE_DEGRADED,
    HEALTH_STATE_NOT_SERVING,
    HEALTH_STATE_SERVING,
    GetHealthRequest,
    GetHealthResponse,
    HealthState,
    ServiceHealth,
)
from nourish.mesh.v1.edge_pb2_grpc import EdgeServiceServicer

from mesh.runtime import Context

_SUBSETS = (".stable", ".canary")
_ADMIN_TIMEOUT_SECONDS = 1.0


class EdgeService(EdgeServiceServicer):
    """Answers for the edge; `admin` is the path of its Envoy's admin socket."""

    def __init__(self, admin: str) -> None:
        self._admin = admin

    async def GetHealth(self, request: GetHealthRequest, context: Context) -> GetHealthResponse:
        """Returns the state of each service.

        Raises:
            ConnectionError, TimeoutError: Envoy's admin socket does not answer.
        """
        body = await _get(self._admin, "/clusters?format=json")
        return summarize(json.loads(body))


def summarize(clusters: Mapping[str, Any]) -> GetHealthResponse:
    """The health of all from Envoy's `/clusters?format=json`.

    An instance is known in two clusters when its subset stands in for the other one; it counts once, and as healthy if
    either cluster's check says so.
    """
    instances: dict[str, dict[str, bool]] = defaultdict(dict)
    for cluster in clusters.get("cluster_statuses", ()):
        name: str = cluster["name"]
        if not name.endswith(_SUBSETS):
            continue
        found = instances[name.rpartition(".")[0]]
        for host in cluster.get("host_statuses", ()):
            address = json.dumps(host["address"], sort_keys=True)
            found[address] = found.get(address, False) or _healthy(host.get("health_status", {}))
    services = {name: _service_health(found.values()) for name, found in sorted(instances.items())}
    states = {s.state for s in services.values()}
    return GetHealthResponse(state=_worst(states), services=services)


def _healthy(status: Mapping[str, Any]) -> bool:
    failed = [key for key, value in status.items() if key.startswith("failed_") and value]
    return not failed and status.get("eds_health_status", "HEALTHY") in ("HEALTHY", "UNKNOWN")


def _service_health(instances: Iterable[bool]) -> ServiceHealth:
    known = list(instances)
    healthy = sum(known)
    state = HEALTH_STATE_NOT_SERVING
    if healthy:
        state = HEALTH_STATE_SERVING if healthy == len(known) else HEALTH_STATE_DEGRADED
    return ServiceHealth(state=state, instances=len(known), healthy_instances=healthy)


def _worst(states: set[HealthState.ValueType]) -> HealthState.ValueType:
    """Serving if all are, not serving if none is; an edge without services has nothing to serve."""
    if len(states) == 1:
        return next(iter(states))
    return HEALTH_STATE_DEGRADED if states else HEALTH_STATE_NOT_SERVING


async def _get(socket: str, path: str) -> bytes:
    """One HTTP/1.1 GET over a Unix socket (Envoy refuses HTTP/1.0), which Envoy's admin then closes."""
    async with asyncio.timeout(_ADMIN_TIMEOUT_SECONDS):
        try:
            reader, writer = await asyncio.open_unix_connection(socket)
        except FileNotFoundError as error:
            raise ConnectionError("the proxy's admin socket is not there") from error
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
    response = HTTPResponse(_Received(answer))  # type: ignore[arg-type]  # it asks for no more than `makefile`
    response.begin()
    if response.status != HTTPStatus.OK:
        raise ConnectionError("the proxy's admin socket refused the question")
    return response.read()


class _Received:
    """A whole answer, for http.client to take apart: Envoy sends a long one in chunks."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)
