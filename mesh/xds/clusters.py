"""CDS: where a proxy may send calls. Its own application, and each subset of each service that it calls."""

from __future__ import annotations

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import protocol_pb2
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from google.protobuf import any_pb2

from mesh.xds import endpoints, pb, policies, scraping
from mesh.xds.plan import NodePlan, Target
from mesh.xds.policies import circuit_breakers

APP = "app"
SUPPORT = "support"  # the same application's health and reflection, so that they count as none of its calls
COLLECTOR = "otlp"  # what takes spans, if the values name one
CONTROL = "xds"  # the control plane, in every proxy's bootstrap
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
STREAM_WINDOW, CONNECTION_WINDOW = 1 << 20, 4 << 20  # bytes


def clusters(node: NodePlan) -> list[cluster_pb2.Cluster]:
    """Every cluster of a node; EDS clusters first need `endpoints.assignments`."""
    own = [app(node), app(node, SUPPORT), *(upstream(node, target) for target in node.targets)]
    return [*own, *([collector(node)] if node.telemetry.otlp else []), *scraping.clusters(node)]


def collector(node: NodePlan) -> cluster_pb2.Cluster:
    """Where spans are sent: an OpenTelemetry collector near by, without TLS."""
    host, _, port = node.telemetry.otlp.rpartition(":")
    return cluster_pb2.Cluster(
        name=COLLECTOR,
        type=cluster_pb2.Cluster.DiscoveryType.STRICT_DNS,
        connect_timeout=pb.seconds(1),
        load_assignment=endpoints.single(COLLECTOR, pb.tcp(host.strip("[]"), int(port))),
        typed_extension_protocol_options={HTTP_OPTIONS: _http2(keepalive=True)},
    )


def app(node: NodePlan, name: str = APP) -> cluster_pb2.Cluster:
    """The application behind this proxy, on a Unix socket that nobody else reaches."""
    breakers = circuit_breaker_pb2.CircuitBreakers(thresholds=[circuit_breakers.limits(node.limits)])
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.DiscoveryType.STATIC,
        connect_timeout=pb.seconds(1),
        load_assignment=endpoints.local(name, node.node.app_socket),
        circuit_breakers=breakers,
        typed_extension_protocol_options={HTTP_OPTIONS: _http2(keepalive=False)},
    )


def upstream(node: NodePlan, target: Target) -> cluster_pb2.Cluster:
    """One subset of a service that this node calls."""
    cluster = cluster_pb2.Cluster(
        name=target.name,
        type=cluster_pb2.Cluster.DiscoveryType.EDS,
        eds_cluster_config=cluster_pb2.Cluster.EdsClusterConfig(eds_config=pb.ads()),
        connect_timeout=pb.seconds(1),
        typed_extension_protocol_options={HTTP_OPTIONS: _http2(keepalive=True)},
    )
    for policy in policies.CLUSTER:
        cluster.MergeFrom(policy(node, target))
    return cluster


def _http2(*, keepalive: bool) -> any_pb2.Any:
    options = protocol_pb2.Http2ProtocolOptions(
        initial_stream_window_size=pb.uint32(STREAM_WINDOW), initial_connection_window_size=pb.uint32(CONNECTION_WINDOW)
    )
    if keepalive:  # finds a peer that vanished without a word; the other end is an Envoy, which minds no ping
        options.connection_keepalive.CopyFrom(
            protocol_pb2.KeepaliveSettings(interval=pb.seconds(30), timeout=pb.seconds(5))
        )
    explicit = HttpProtocolOptions.ExplicitHttpConfig(http2_protocol_options=options)
    return pb.pack(HttpProtocolOptions(explicit_http_config=explicit))
