"""The Envoy before the control plane in a cluster: who may ask it for what, by which certificate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from envoy.service.discovery.v3.ads_pb2_grpc import AggregatedDiscoveryServiceStub
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from nourish.mesh.v1 import registry_pb2
from nourish.mesh.v1.registry_pb2_grpc import RegistryServiceStub

from mesh.xds.snapshot import CDS
from tests.chart import CONTROL, Cluster, cluster

PREFIX = "spiffe://nourish.local/ns/nourish/sa/"
METADATA = {
    "app_socket": "/a",
    "egress_socket": "/e",
    "identity_dir": "/i",
    "inbound_address": "127.0.0.1",
    "inbound_port": 1,
    "subset": "stable",
}
Forged = tuple[tuple[str, str], ...]


@pytest.fixture
async def mesh() -> AsyncIterator[tuple[Cluster, int]]:
    """A control plane behind its Envoy, and the port of that."""
    async with cluster() as made:
        yield made, await made.control_plane()


@asynccontextmanager
async def channel(mesh: tuple[Cluster, int], spiffe_id: str) -> AsyncIterator[grpc.aio.Channel]:
    """A connection that shows this identity, of the mesh's own authority."""
    made, port = mesh
    service = spiffe_id.rpartition("/")[2]
    folder = made.authority.issue(service, spiffe_id).folder
    root, key, certificate = ((folder / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    name = (("grpc.ssl_target_name_override", CONTROL),)  # at an address
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, name) as made_channel:
        yield made_channel


async def ask(channel: grpc.aio.Channel, service: str, forged: Forged = ()) -> DeltaDiscoveryResponse:
    """The first answer to a node that says it is this service's."""
    request = DeltaDiscoveryRequest(type_url=CDS, resource_names_subscribe=["*"])
    request.node.id = f"{service}-0"
    request.node.metadata.update({**METADATA, "service": service})
    stream = AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources(metadata=forged, timeout=30)
    await stream.write(request)
    answer = await stream.read()
    if answer is grpc.aio.EOF:
        raise grpc.aio.AioRpcError(
            await stream.code(),
            await stream.initial_metadata(),
            await stream.trailing_metadata(),
            await stream.details(),
        )
    stream.cancel()
    return answer


async def test_a_node_is_served_to_the_holder_of_its_certificate_alone(mesh: tuple[Cluster, int]) -> None:
    """A header in the certificate's name that the client sends neither opens another's nor spoils its own."""
    header = ("x-forwarded-client-cert", f"By=x;URI={PREFIX}food")
    async with channel(mesh, PREFIX + "nutrition") as own:
        for forged in ((), (header,), (header, header)):
            served = await ask(own, "nutrition", forged)
            assert {"app", "food.stable"} <= {r.name for r in served.resources}
            with pytest.raises(grpc.aio.AioRpcError, match=f"its certificate is that of {PREFIX}nutrition") as caught:
                await ask(own, "food", forged)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        report = registry_pb2.ReportEndpointsRequest(source="mine")
        report.endpoints.add(service="food", instance="food-9", subset="stable", address="10.0.0.1", port=1)
        report.lease.FromSeconds(60)
        with pytest.raises(grpc.aio.AioRpcError, match="of nutrition reports no endpoints of food"):
            await RegistryServiceStub(own).ReportEndpoints(report, metadata=(header,), timeout=30)

    # Though the same authority has signed it: an identity of another trust domain or namespace gets no connection.
    for alien in ("spiffe://elsewhere/ns/nourish/sa/food", "spiffe://nourish.local/ns/other/sa/food"):
        async with channel(mesh, alien) as other:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(other, "food", (header,))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
