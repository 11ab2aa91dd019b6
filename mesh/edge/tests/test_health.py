"""What `/health` makes of Envoy's view of its clusters."""

import asyncio
import json

import grpc
import pytest
from nourish.mesh.v1.edge_pb2 import (
    HEALTH_STATE_DEGRADED,
    HEALTH_STATE_NOT_SERVING,
    HEALTH_STATE_SERVING,
    GetHealthRequest,
)
from nourish.mesh.v1.edge_pb2_grpc import EdgeServiceStub

from mesh.edge.health import EdgeService, summarize
from mesh.runtime.testing import serve_in_memory


def host(port: int, **health: object) -> dict:
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "health_status": {"eds_health_status": "HEALTHY", **health},
    }


def clusters(**hosts: list) -> dict:
    return {"cluster_statuses": [{"name": n.replace("_", "."), "host_statuses": h} for n, h in hosts.items()]}


def test_an_instance_that_stands_in_for_the_other_subset_counts_once():
    answer = summarize(clusters(food_stable=[host(1), host(2)], food_canary=[host(2), host(1)], xds=[host(9)]))
    assert answer.services["food"].instances == 2
    assert answer.state == HEALTH_STATE_SERVING
    assert list(answer.services) == ["food"]


@pytest.mark.parametrize("why", ["failed_active_health_check", "failed_outlier_check", "failed_active_degraded_check"])
def test_an_instance_that_fails_a_check_makes_its_service_degraded(why):
    answer = summarize(clusters(food_stable=[host(1), host(2, **{why: True})], profile_stable=[host(3)]))
    assert answer.services["food"].healthy_instances == 1
    assert answer.services["food"].state == HEALTH_STATE_DEGRADED
    assert answer.services["profile"].state == HEALTH_STATE_SERVING
    assert answer.state == HEALTH_STATE_DEGRADED


def test_a_service_without_instances_is_not_serving():
    answer = summarize(clusters(food_stable=[], profile_stable=[host(3)]))
    assert answer.services["food"].state == HEALTH_STATE_NOT_SERVING
    assert answer.state == HEALTH_STATE_DEGRADED


async def test_a_silent_admin_socket_is_an_error_and_not_a_guess(tmp_path):
    async with serve_in_memory(EdgeService(str(tmp_path / "nobody.sock"))) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EdgeServiceStub(channel).GetHealth(GetHealthRequest())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_the_answer_is_read_from_the_admin_socket(tmp_path):
    async def admin(reader, writer):
        assert await reader.readline() == b"GET /clusters?format=json HTTP/1.1\r\n"  # Envoy refuses HTTP/1.0
        body = json.dumps(clusters(food_stable=[host(1)])).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(admin, tmp_path / "admin.sock"):
        async with serve_in_memory(EdgeService(str(tmp_path / "admin.sock"))) as channel:
            answer = await EdgeServiceStub(channel).GetHealth(GetHealthRequest())
    assert answer.services["food"].state == HEALTH_STATE_SERVING
