"""Endpoints are held by lease, each source's own, and a certificate's holder reports its own service alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from nourish.mesh.v1 import registry_pb2

from mesh.xds.tests.lab import Lab, poll

VALUES = "services: {store: {}, front: {calls: [store]}}"
STORE = (("x-forwarded-client-cert", "By=x;URI=spiffe://nourish.local/ns/nourish/sa/store"),)


@pytest.fixture
async def known(lab: Lab) -> Lab:
    """A control plane with values and a first, empty report of the runner."""
    assert (await lab.apply(VALUES)).applied
    await lab.report()
    return lab


async def report(lab: Lab, source: str, *instances: str, lease: int | None = None, **options: Any) -> Any:
    request = registry_pb2.ReportEndpointsRequest(source=source)
    for instance in instances:
        service = instance.partition("-")[0]
        request.endpoints.add(service=service, instance=instance, subset="stable", address="10.0.0.1", port=15006)
    if lease:
        request.lease.FromSeconds(lease)
    return await lab.registry.ReportEndpoints(request, timeout=10, **options)


async def listed(lab: Lab) -> dict[str, list[str]]:
    answer = await lab.registry.ListEndpoints(registry_pb2.ListEndpointsRequest())
    return {source.name: [e.instance for e in source.endpoints] for source in answer.sources if source.endpoints}


async def refused(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_a_lease_that_is_not_renewed_withdraws_its_endpoints_and_no_others(known: Lab) -> None:
    await report(known, "runner", "front-0")
    assert (await report(known, "worker", "store-9", lease=1)).lease.seconds == 1
    assert await listed(known) == {"runner": ["front-0"], "worker": ["store-9"]}

    async def gone() -> bool:
        return await listed(known) == {"runner": ["front-0"]}

    await poll(gone)


async def test_a_report_renews_replaces_and_leaves(known: Lab) -> None:
    await report(known, "worker", "store-8", "store-9", lease=1)
    await report(known, "worker", "store-9", lease=3600)
    (worker,) = [s async for s in _sources(known) if s.name == "worker"]
    assert worker.lease_left.seconds > 3000
    assert [e.instance for e in worker.endpoints] == ["store-9"]
    await report(known, "worker", lease=1)
    assert await listed(known) == {}


async def test_a_certificate_reports_its_own_service_by_lease_under_names_of_its_own(known: Lab) -> None:
    await report(known, "runner", "store-0")
    await report(known, "runner", "store-9", lease=60, metadata=STORE)
    assert await listed(known) == {"runner": ["store-0"], "store/runner": ["store-9"]}
    other = report(known, "runner", "front-0", lease=60, metadata=STORE)
    assert await refused(other) is grpc.StatusCode.PERMISSION_DENIED
    assert await refused(report(known, "runner", "store-9", metadata=STORE)) is grpc.StatusCode.INVALID_ARGUMENT
    stranger = (("x-forwarded-client-cert", "URI=spiffe://elsewhere/ns/nourish/sa/store"),)
    alien = report(known, "runner", "store-9", lease=60, metadata=stranger)
    assert await refused(alien) is grpc.StatusCode.PERMISSION_DENIED


async def _sources(lab: Lab) -> AsyncIterator[registry_pb2.EndpointSource]:
    for source in (await lab.registry.ListEndpoints(registry_pb2.ListEndpointsRequest())).sources:
        yield source
