"""The ADS state machine with a client that names its listeners, as gRPC's own does."""

from __future__ import annotations

from typing import Any

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest
from google.rpc import status_pb2

from mesh.xds.plan import Node, Plan
from mesh.xds.snapshot import CDS, EDS, LDS, RDS, compile_node
from mesh.xds.stream import StateOfTheWorld, Stream
from mesh.xds.tests.test_stream import resource_names


def ask(stream: Stream, kind: str, *names: str, response: Any = None, error: str = "") -> list[Any]:
    """What a client that names all it wants is sent next. With a `response` it is the answer to that."""
    detail = status_pb2.Status(code=3, message=error) if error else None
    nonce = response.nonce if response else ""
    stream.request(DiscoveryRequest(type_url=kind, resource_names=names, response_nonce=nonce, error_detail=detail))
    return list(stream.responses())


def test_who_names_listeners_gets_those_and_is_settled_when_all_they_lead_to_is_taken(plan: Plan) -> None:
    """gRPC's client learns of routes from its listener, of clusters from routes, and of endpoints from clusters."""
    stream = StateOfTheWorld()
    stream.publish(compile_node(plan.node(Node.without_proxy("front-0", "front", "stable"))))
    clusters = ("store.canary", "store.stable")
    chain = [(LDS, ("egress",)), (RDS, ("egress",)), (CDS, clusters), (EDS, clusters)]
    for kind, names in chain:
        (sent,) = ask(stream, kind, *names)
        assert resource_names(sent) == list(names)
        assert ask(stream, kind, *names, response=sent) == []
        assert stream.settled == (kind == EDS)
    assert stream.errors == {}


def test_who_names_the_inbound_listener_alone_is_settled_with_it(plan: Plan) -> None:
    stream = StateOfTheWorld()
    stream.publish(compile_node(plan.node(Node.without_proxy("front-0", "front", "stable"))))
    (sent,) = ask(stream, LDS, "inbound")
    assert resource_names(sent) == ["inbound"]
    assert not stream.settled
    assert ask(stream, LDS, "inbound", response=sent) == []
    assert stream.settled


def test_who_names_listeners_and_refuses_routes_holds_nobody_up(plan: Plan) -> None:
    stream = StateOfTheWorld()
    stream.publish(compile_node(plan.node(Node.without_proxy("front-0", "front", "stable"))))
    (listener,) = ask(stream, LDS, "egress")
    ask(stream, LDS, "egress", response=listener)
    (routes,) = ask(stream, RDS, "egress")
    ask(stream, RDS, "egress", response=routes, error="no")
    assert (stream.settled, stream.errors) == (True, {"rds": "no"})
