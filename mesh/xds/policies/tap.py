"""Where `mesh record` listens. Nothing is tapped until the proxy's admin interface is asked to, and no longer."""

from __future__ import annotations

from typing import Any

from envoy.extensions.common.tap.v3 import common_pb2
from envoy.extensions.filters.http.tap.v3 import tap_pb2

from mesh.xds import pb
from mesh.xds.plan import NodePlan

CONFIG_ID = "calls"  # by which a request to the admin interface names this filter


def calls(node: NodePlan) -> Any:
    """Behind the checks: a call that they refuse never reached the application and is not worth recording."""
    admin = common_pb2.AdminConfig(config_id=CONFIG_ID)
    config = tap_pb2.Tap(
        common_config=common_pb2.CommonExtensionConfig(admin_config=admin), record_headers_received_time=True
    )
    return pb.http_filter("envoy.filters.http.tap", config)
