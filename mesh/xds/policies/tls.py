"""mTLS: TLS 1.3 both ways, certificates from files that Envoy watches, identities matched exactly."""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, config_source_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2

from mesh.identity import files
from mesh.xds import pb
from mesh.xds.plan import NodePlan, Target

TRANSPORT_SOCKET = "envoy.transport_sockets.tls"
# The file in a node's identity folder, and the secret in it.
CERTIFICATE = (files.SDS_CERTIFICATE, files.CERTIFICATE_SECRET)
TRUST = (files.SDS_TRUST, files.TRUST_SECRET)
URI = common_pb2.SubjectAltNameMatcher.SanType.URI


def cluster(node: NodePlan, target: Target) -> cluster_pb2.Cluster:
    """Only the callee's own certificate will do: the authority alone would let any service stand in for it."""
    context = tls_pb2.UpstreamTlsContext(common_tls_context=_common(node, pb.exact(target.spiffe_id)))
    return cluster_pb2.Cluster(transport_socket=_socket(context))


def downstream(node: NodePlan) -> base_pb2.TransportSocket:
    """No certificate of this mesh, no session."""
    context = tls_pb2.DownstreamTlsContext(
        common_tls_context=_common(node, pb.prefix(node.trust_prefix)), require_client_certificate=pb.true()
    )
    return _socket(context)


def _socket(context: Any) -> base_pb2.TransportSocket:
    return base_pb2.TransportSocket(name=TRANSPORT_SOCKET, typed_config=pb.pack(context))


def _common(node: NodePlan, peer: Any) -> tls_pb2.CommonTlsContext:
    # Envoy's upstream side stops at TLS 1.2 unless told.
    version = common_pb2.TlsParameters.TlsProtocol.TLSv1_3
    peers = common_pb2.CertificateValidationContext(
        match_typed_subject_alt_names=[common_pb2.SubjectAltNameMatcher(san_type=URI, matcher=peer)]
    )
    return tls_pb2.CommonTlsContext(
        tls_params=common_pb2.TlsParameters(tls_minimum_protocol_version=version, tls_maximum_protocol_version=version),
        tls_certificate_sds_secret_configs=[_secret(node, *CERTIFICATE)],
        combined_validation_context=tls_pb2.CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=peers, validation_context_sds_secret_config=_secret(node, *TRUST)
        ),
        alpn_protocols=["h2"],
    )


def _secret(node: NodePlan, file: str, name: str) -> secret_pb2.SdsSecretConfig:
    folder = node.node.identity_dir
    source = config_source_pb2.PathConfigSource(
        path=f"{folder}/{file}", watched_directory=base_pb2.WatchedDirectory(path=folder)
    )
    return secret_pb2.SdsSecretConfig(
        name=name,
        sds_config=config_source_pb2.ConfigSource(
            path_config_source=source, resource_api_version=config_source_pb2.ApiVersion.V3
        ),
    )
