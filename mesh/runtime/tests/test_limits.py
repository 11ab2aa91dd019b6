"""How much a process takes on: calls at once, streams at once, bytes a message."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from mesh.runtime import options, server
from mesh.runtime.environment import environment
from mesh.runtime.testing import serve_in_memory
from mesh.runtime.tests.talk import Line, Refused, Servicer, Stub


class Talk(Servicer):
    """Counts what was begun, and holds it until told to go on."""

    def __init__(self):
        self.begun, self.go = 0, asyncio.Event()

    async def Hear(self, request, context):
        self.begun += 1
        await self.go.wait()
        return Line()

    async def Watch(self, request, context):
        self.begun += 1
        await self.go.wait()
        yield Line()

    async def until(self, begun):
        async with asyncio.timeout(20):
            while self.begun < begun:
                await asyncio.sleep(0.01)


@pytest.fixture
def talk():
    return Talk()


@pytest.fixture
async def stub(talk, monkeypatch):
    few = replace(environment(), max_calls=3, max_streams=2)
    monkeypatch.setattr(server, "environment", lambda: few)
    async with serve_in_memory(talk) as channel:
        yield Stub(channel)


async def test_one_call_too_many_is_refused_before_it_begins_and_told_when_to_come_back(stub, talk):
    calls = [stub.Hear(Line()) for _ in range(3)]
    await talk.until(begun=3)
    with Refused() as refused:
        await stub.Hear(Line(text="not even looked at"))
    assert refused.reason == "RESOURCE_EXHAUSTED"
    assert refused.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    assert talk.begun == 3
    talk.go.set()
    await asyncio.gather(*calls)
    await asyncio.gather(*(stub.Hear(Line()) for _ in range(3)))


async def test_calls_that_fail_or_are_given_up_free_their_place(stub, talk):
    for _ in range(3):
        call = stub.Hear(Line())
        begun = talk.begun
        await talk.until(begun=begun + 1)
        call.cancel()
    for _ in range(5):
        with Refused() as refused:
            await stub.Hear(Line(text="much too long for a line"))
        assert refused.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_streams_that_last_do_not_take_the_place_of_calls(stub, talk):
    streams = [stub.Watch(Line()) for _ in range(2)]
    reads = [asyncio.ensure_future(stream.read()) for stream in streams]
    await talk.until(begun=2)
    with Refused() as refused:
        await stub.Watch(Line()).read()
    assert refused.reason == "RESOURCE_EXHAUSTED"
    call = stub.Hear(Line())
    await talk.until(begun=3)
    talk.go.set()
    await asyncio.gather(call, *reads)


async def test_a_message_over_the_limit_is_refused(stub):
    with Refused() as refused:
        await stub.Hear(Line(text="x" * (options.MAX_MESSAGE_BYTES + 1)))
    assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_caller_pings_no_oftener_than_the_other_end_permits():
    permitted = dict(options.SERVER)["grpc.http2.min_recv_ping_interval_without_data_ms"]
    assert dict(options.CLIENT)["grpc.keepalive_time_ms"] > permitted
