"""`serve` and `call`, through a real server on a real socket."""

import asyncio

import grpc
import pytest
from google.protobuf import empty_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nourish.error.v1.reason_pb2 import Reason
from nourish.food.v1 import food_pb2, food_pb2_grpc

from mesh.runtime import auth, errors
from mesh.runtime.client import passing_on
from mesh.runtime.testing import as_user, serve_in_memory


class Foods(food_pb2_grpc.FoodServiceServicer):
    """Answers each method with what the test wants to see."""

    def __init__(self, downstream=None):
        self.downstream = downstream

    async def GetFood(self, request, context):
        match request.name:
            case "foods/missing":
                raise errors.not_found(request.name)
            case "foods/defect":
                raise ValueError("secret engine text")
            case "foods/slow":
                await asyncio.sleep(30)
            case "foods/down":
                raise ConnectionRefusedError("10.0.0.1:5432")
            case "foods/onward":
                await self.downstream.GetFood(food_pb2.GetFoodRequest(name="foods/missing"))
        left = auth.current.get().deadline - asyncio.get_running_loop().time()
        return food_pb2.Food(name=request.name, display_name=auth.principal().user or "", category=f"{left:.3f}")

    async def DeleteFood(self, request, context):
        return empty_pb2.Empty()


def details(error: grpc.aio.AioRpcError) -> dict[str, object]:
    """The error details by message name."""
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    kinds = {
        k.DESCRIPTOR.full_name: k
        for k in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RequestInfo)
    }
    found = {}
    for packed in status_pb2.Status.FromString(raw).details:
        detail = kinds[packed.type_url.rpartition("/")[2]]()
        packed.Unpack(detail)
        found[type(detail).__name__] = detail
    return found


async def failure(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.fixture
async def stub():
    async with serve_in_memory(Foods()) as channel:
        yield food_pb2_grpc.FoodServiceStub(channel)


async def test_an_error_carries_its_reason_code_and_request_id(stub):
    error = await failure(
        stub.GetFood(food_pb2.GetFoodRequest(name="foods/missing"), metadata=(("x-request-id", "r-1"),))
    )
    assert error.code() == grpc.StatusCode.NOT_FOUND
    found = details(error)
    assert (found["ErrorInfo"].reason, found["ErrorInfo"].domain) == ("NOT_FOUND", "nourish.local")
    assert found["ErrorInfo"].metadata["name"] == "foods/missing"
    assert found["RequestInfo"].request_id == "r-1"


async def test_an_unexpected_exception_is_internal_and_its_text_is_not_sent(stub):
    error = await failure(stub.GetFood(food_pb2.GetFoodRequest(name="foods/defect")))
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(error) + str(error.trailing_metadata())


async def test_an_engine_that_refuses_connections_is_unavailable_without_its_address(stub):
    error = await failure(stub.GetFood(food_pb2.GetFoodRequest(name="foods/down")))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "10.0.0.1" not in str(error)


async def test_a_broken_field_limit_names_the_field(stub):
    request = food_pb2.BatchGetFoodsRequest(names=["foods/good", "BAD"])
    error = await failure(stub.BatchGetFoods(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    violation = details(error)["BadRequest"].field_violations[0]
    assert violation.field == "names[1]"
    assert "pattern" in violation.description


async def test_a_users_method_needs_a_user_and_the_scope(stub):
    request = food_pb2.DeleteFoodRequest(name="foods/x")
    assert (await failure(stub.DeleteFood(request))).code() == grpc.StatusCode.UNAUTHENTICATED
    without = await failure(stub.DeleteFood(request, metadata=as_user("alice", "profile.read")))
    assert without.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "food.write" in without.details()
    await stub.DeleteFood(request, metadata=as_user("alice", "food.write"))


async def test_the_callers_deadline_wins_over_the_contracts_when_it_is_shorter(stub):
    food = await stub.GetFood(food_pb2.GetFoodRequest(name="foods/x"), timeout=0.5)
    assert 0 < float(food.category) <= 0.5
    food = await stub.GetFood(food_pb2.GetFoodRequest(name="foods/x"), timeout=60)
    assert 1 < float(food.category) <= 2  # the contract's


async def test_without_a_callers_deadline_the_contracts_ends_the_call(stub):
    error = await failure(stub.GetFood(food_pb2.GetFoodRequest(name="foods/slow")))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_an_outgoing_call_passes_on_request_id_and_keeps_the_others_reason():
    async with serve_in_memory(Foods()) as inner:
        async with serve_in_memory(Foods(food_pb2_grpc.FoodServiceStub(inner))) as outer:
            stub = food_pb2_grpc.FoodServiceStub(outer)
            call = stub.GetFood(food_pb2.GetFoodRequest(name="foods/onward"), metadata=(("x-request-id", "r-2"),))
            error = await failure(call)
    assert error.code() == grpc.StatusCode.NOT_FOUND
    found = details(error)
    assert found["ErrorInfo"].metadata["name"] == "foods/missing"
    assert found["RequestInfo"].request_id == "r-2"


async def test_an_outgoing_call_says_its_key_and_the_fault_that_is_asked_for():
    """Equal requests have equal keys, which do not show what they are made of."""
    seen = []

    class Inner(Foods):
        async def GetFood(self, request, context):
            seen.append(dict(context.invocation_metadata()))
            return food_pb2.Food(name=request.name)

    class Outer(Foods):
        async def GetFood(self, request, context):
            return await self.downstream.GetFood(request)

    async with serve_in_memory(Inner()) as inner:
        async with serve_in_memory(Outer(food_pb2_grpc.FoodServiceStub(inner))) as outer:
            stub = food_pb2_grpc.FoodServiceStub(outer)
            for name in ("foods/a", "foods/b", "foods/a"):
                await stub.GetFood(food_pb2.GetFoodRequest(name=name), metadata=(("x-fault", "slow"),))
    first, second, third = (metadata["x-nourish-key"] for metadata in seen)
    assert first == third != second
    assert "foods" not in first
    assert {metadata["x-fault"] for metadata in seen} == {"slow"}


async def test_health_answers_for_the_process_and_for_each_service():
    async with serve_in_memory(Foods()) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "nourish.food.v1.FoodService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("reason", [v.number for v in Reason.DESCRIPTOR.values if v.number])
def test_every_reason_has_a_code_in_the_contract(reason):
    assert errors.ServiceError(reason, "x").code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)


async def test_a_channel_without_a_sidecar_gives_each_call_the_contracts_deadline():
    """GetFood has 2 s; one that gives itself less keeps that, and behind a sidecar it is the sidecar that bounds."""

    class Plain(food_pb2_grpc.FoodServiceServicer):
        async def GetFood(self, request, context):
            return food_pb2.Food(category=str(context.time_remaining() or ""))

    server = grpc.aio.server()
    food_pb2_grpc.add_FoodServiceServicer_to_server(Plain(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        bounded = food_pb2_grpc.FoodServiceStub(passing_on(channel, bounded=True))
        request = food_pb2.GetFoodRequest(name="foods/1")
        # gRPC rounds, and counts from a moment of its own: about so much.
        assert 1.3 < float((await bounded.GetFood(request)).category) < 2.3
        assert float((await bounded.GetFood(request, timeout=1)).category) < 1.3
        assert not (await food_pb2_grpc.FoodServiceStub(passing_on(channel)).GetFood(request)).category
    await server.stop(0)
