"""Each service's health as the edge's Envoy sees it: its own active checks, read from its admin socket.

Nothing asks the control plane or a service: `/health` is true even when the control plane is dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
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

from mesh import admin
from mesh.runtime import Context


class EdgeService(EdgeServiceServicer):
    """Answers for the edge; `socket` is the path of its Envoy's admin socket."""

    def __init__(self, socket: str) -> None:
        self._admin = admin.Admin(Path(socket))

    async def GetHealth(self, request: GetHealthRequest, context: Context) -> GetHealthResponse:
        """Returns the state of each service.

        Raises:
            AdminError: Envoy's admin socket does not answer.
        """
        return summarize(await self._admin.clusters())


def summarize(clusters: Mapping[str, Any]) -> GetHealthResponse:
    """The health of all from Envoy's `/clusters?format=json`.

    An instance is known in two clusters when its subset stands in for the other one; it counts once, and as healthy if
    either cluster's check says so.
    """
    instances: dict[str, dict[tuple[str, int], bool]] = {name: {} for name in admin.services(clusters)}
    for host in admin.hosts(clusters):
        found, key = instances[host.service], (host.address, host.port)
        found[key] = found.get(key, False) or host.healthy
    services = {name: _service_health(found.values()) for name, found in sorted(instances.items())}
    states = {s.state for s in services.values()}
    return GetHealthResponse(state=_worst(states), services=services)


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
