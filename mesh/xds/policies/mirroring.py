"""Copies of calls for the canary, which proves itself on real requests while callers see the stable answers."""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3.route_components_pb2 import RouteAction
from envoy.type.v3 import percent_pb2

from mesh.contract import Method
from mesh.xds.plan import Callee


def route(callee: Callee, method: Method) -> RouteAction:
    """Calls without side effects alone, and no streams: Envoy would hold all that such a call sends."""
    percent = callee.traffic.mirror.percent
    canary = next((target for target in callee.targets if target.subset == "canary"), None)
    streams = method.client_streaming or method.server_streaming
    if not percent or canary is None or method.idempotency != "no_side_effects" or streams:
        return RouteAction()
    share = base_pb2.RuntimeFractionalPercent(default_value=percent_pb2.FractionalPercent(numerator=percent))
    return RouteAction(
        request_mirror_policies=[RouteAction.RequestMirrorPolicy(cluster=canary.name, runtime_fraction=share)]
    )
