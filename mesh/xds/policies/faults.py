"""Faults on purpose: delays and aborts, by share or where a header asks for them, at the callee's inbound.

There a fault looks to every caller, the edge too, like the service's own: deadlines, ejection and rollouts react to it
as they would in earnest. It comes with the routes, so that an edit breaks no connection.
"""

from __future__ import annotations

from typing import Any

from envoy.config.route.v3.route_components_pb2 import HeaderMatcher
from envoy.extensions.filters.common.fault.v3 import fault_pb2 as common_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.type.v3 import percent_pb2
from google.rpc import code_pb2

from mesh.traffic import Abort, Delay, FaultHeader
from mesh.xds import pb
from mesh.xds.plan import NodePlan

FILTER = "envoy.filters.http.fault"
# Without the prefix of the headers that only the mesh sets, for this one is the caller's to set and is passed on from
# hop to hop. The edge takes it away unless the values tell it not to.
HEADER = "x-fault"


def inject(node: NodePlan) -> Any:
    """Nothing by itself: the routes say what to do."""
    return pb.http_filter(FILTER, fault_pb2.HTTPFault())


def settings(node: NodePlan) -> dict[str, Any]:
    """The setting of this node's routes by the filter's name; empty if its subset has no faults.

    A header alone does nothing, but is there for Envoy to judge: so the one value of an edit that it refuses is found.
    """
    faults = node.traffic.faults
    if faults.subset not in ("all", node.node.subset) or not (faults.delay or faults.abort or faults.header):
        return {}
    config = fault_pb2.HTTPFault(
        delay=_delay(faults.delay) if faults.delay else None,
        abort=_abort(faults.abort) if faults.abort else None,
        headers=[_header(faults.header)] if faults.header else [],
    )
    return {FILTER: pb.pack(config)}


def from_outside(node: NodePlan) -> list[str]:
    """The headers that the edge takes away from what comes from outside."""
    return [] if node.edge.accept_fault_header else [HEADER]


def _delay(delay: Delay) -> common_pb2.FaultDelay:
    return common_pb2.FaultDelay(fixed_delay=pb.seconds(delay.milliseconds / 1000), percentage=_share(delay.percent))


def _abort(abort: Abort) -> fault_pb2.FaultAbort:
    return fault_pb2.FaultAbort(grpc_status=code_pb2.Code.Value(abort.status), percentage=_share(abort.percent))


def _header(header: FaultHeader) -> HeaderMatcher:
    return pb.header_is(HEADER, pb.regex(header.regex) if header.regex else pb.exact(header.exact))


def _share(percent: int) -> percent_pb2.FractionalPercent:
    return percent_pb2.FractionalPercent(numerator=percent)
