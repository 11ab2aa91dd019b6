"""Streams get what calls get: validation, principal, deadline, errors, request id, a bounded drain, cancellation."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from mesh.runtime import auth, errors
from mesh.runtime.server import build_server
from mesh.runtime.testing import as_user, serve_in_memory
from mesh.runtime.tests.talk import Line, Refused, Servicer, Stub

FOREVER = 3600


class Talk(Servicer):
    """Says what it sees; `ended` fills with the texts of streams whose code has come to its end."""

    def __init__(self, downstream=None):
        self.downstream = downstream
        self.ended = asyncio.Queue()

    async def Watch(self, request, context):
        try:
            yield Line(text=auth.current.get().request_id)
            match request.text:
                case "missing":
                    raise errors.not_found("talks/x")
                case "defect":
                    raise ValueError("secret engine text")
                case "left":
                    yield Line(text=f"{auth.time_left():.1f}")
                case "onward":
                    async for line in self.downstream.Watch(Line(text="wait")):
                        yield line
                case "wait":
                    await asyncio.sleep(FOREVER)
        finally:
            self.ended.put_nowait(request.text)

    async def WatchMuch(self, request, context):
        task = asyncio.current_task()
        try:
            while True:
                yield Line(text="x" * 1_000_000)
        finally:
            self.ended.put_nowait(asyncio.current_task() is task)

    WatchOwn = Watch
    WatchBriefly = Watch

    async def Collect(self, requests, context):
        return Line(text="+".join([line.text async for line in requests]))

    async def Echo(self, requests, context):
        async for line in requests:
            yield line


@pytest.fixture
def talk():
    return Talk()


@pytest.fixture
async def stub(talk):
    async with serve_in_memory(talk) as channel:
        yield Stub(channel)


async def lines(*texts):
    for text in texts:
        yield Line(text=text)


async def read(call):
    return [line.text async for line in call]


async def test_every_kind_of_method_answers(stub):
    assert await read(stub.Watch(Line(), metadata=(("x-request-id", "r-1"),))) == ["r-1"]
    assert (await stub.Collect(lines("a", "b"))).text == "a+b"
    assert await read(stub.Echo(lines("a", "b"))) == ["a", "b"]


@pytest.mark.parametrize("method", ["Collect", "Echo"])
async def test_each_message_of_a_stream_is_held_against_the_limits_of_the_contract(stub, method):
    with Refused() as refused:
        call = getattr(stub, method)(lines("good", "much too long for a line"))
        await (call if method == "Collect" else read(call))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.details["BadRequest"].field_violations[0].field == "text"


async def test_what_came_before_a_bad_message_is_answered(stub):
    call = stub.Echo(lines("good", "much too long for a line"))
    assert (await call.read()).text == "good"
    with Refused():
        await call.read()


async def test_the_request_of_a_server_stream_is_validated_too(stub):
    with Refused() as refused:
        await read(stub.Watch(Line(text="much too long for a line")))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_users_stream_needs_the_user_and_the_scope(stub):
    with Refused() as refused:
        await read(stub.WatchOwn(Line()))
    assert refused.code == grpc.StatusCode.UNAUTHENTICATED
    with Refused() as refused:
        await read(stub.WatchOwn(Line(), metadata=as_user("alice", "talk.write")))
    assert refused.code == grpc.StatusCode.PERMISSION_DENIED
    assert await read(stub.WatchOwn(Line(), metadata=as_user("alice", "talk.read")))


async def test_an_error_after_some_messages_carries_reason_and_request_id(stub):
    call = stub.Watch(Line(text="missing"), metadata=(("x-request-id", "r-2"),))
    assert (await call.read()).text == "r-2"
    with Refused() as refused:
        await call.read()
    assert refused.reason == "NOT_FOUND"
    assert refused.details["RequestInfo"].request_id == "r-2"


async def test_an_unexpected_error_of_a_stream_does_not_show_its_text(stub):
    with Refused() as refused:
        await read(stub.Watch(Line(text="defect")))
    assert refused.code == grpc.StatusCode.INTERNAL
    assert "secret" not in refused.whole


async def test_the_contracts_deadline_ends_a_stream_and_its_code(stub, talk):
    with Refused() as refused:
        await read(stub.WatchBriefly(Line(text="wait")))
    assert refused.reason == "DEADLINE_EXCEEDED"
    assert await asyncio.wait_for(talk.ended.get(), 10) == "wait"


async def test_the_callers_deadline_reaches_the_code_of_a_stream(stub):
    _, left = await read(stub.Watch(Line(text="left"), timeout=5))
    assert 0 < float(left) <= 5


async def test_a_caller_that_goes_away_ends_the_stream_through_every_service():
    inner_talk = Talk()
    async with serve_in_memory(inner_talk) as inner:
        outer_talk = Talk(Stub(inner))
        async with serve_in_memory(outer_talk) as outer:
            call = Stub(outer).Watch(Line(text="onward"), metadata=(("x-request-id", "r-3"),))
            assert [(await call.read()).text for _ in range(2)] == ["r-3", "r-3"]
            call.cancel()
            assert await asyncio.wait_for(outer_talk.ended.get(), 10) == "onward"
            assert await asyncio.wait_for(inner_talk.ended.get(), 10) == "wait"


@asynccontextmanager
async def serving(talk, folder):
    """The built server and a stub, so that a test can stop the one while the other calls."""
    built = build_server(talk)
    built.grpc.add_insecure_port(f"unix:{folder}/app.sock")
    await built.grpc.start()
    async with grpc.aio.insecure_channel(f"unix:{folder}/app.sock") as channel:
        yield built, Stub(channel)
    await built.grpc.stop(None)


async def test_a_stream_that_nobody_reads_any_more_is_closed_within_its_call(stub, talk):
    """Its code stands at a `yield`: left to the garbage collector, it would clean up later and elsewhere."""
    call = stub.WatchMuch(Line())
    await call.read()
    call.cancel()
    assert await asyncio.wait_for(talk.ended.get(), 20) is True


async def test_a_stream_that_has_a_message_to_go_finishes_while_the_server_drains(talk, tmp_path):
    async with serving(talk, tmp_path) as (built, stub):
        call = stub.Echo()
        await call.write(Line(text="before"))
        assert (await call.read()).text == "before"
        stopping = asyncio.create_task(built.stop(60))
        while built.running._cut_at is None:
            await asyncio.sleep(0)
        await call.write(Line(text="after"))
        assert (await call.read()).text == "after"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await asyncio.wait_for(stopping, 30)


async def test_a_stream_without_end_is_told_to_call_again_when_the_drain_has_lasted(talk, tmp_path):
    async with serving(talk, tmp_path) as (built, stub):
        call = stub.Watch(Line(text="wait"))
        await call.read()
        built.running.drain(0.2)
        with Refused() as refused:
            await call.read()
    assert refused.reason == "UNAVAILABLE"
    assert talk.ended.get_nowait() == "wait"
