"""Counts how the application's calls end, by gRPC status: `cluster.app.grpc.<code>`. Failures hide in HTTP 200."""

from __future__ import annotations

from envoy.extensions.filters.http.grpc_stats.v3.config_pb2 import FilterConfig

from mesh.xds import pb
from mesh.xds.plan import NodePlan


def filter(_node: NodePlan) -> object:
    """One counter a status, not one a method: that would cost memory in every sidecar."""
    return pb.http_filter("envoy.filters.http.grpc_stats", FilterConfig(stats_for_all_methods=pb.false()))
