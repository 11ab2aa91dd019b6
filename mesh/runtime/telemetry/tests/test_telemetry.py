"""Spans, counts and what a process tells, through a real server, a real socket and a real receiver of OTLP."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
from pathlib import Path

import grpc
import pytest
from nourish.food.v1 import food_pb2, food_pb2_grpc
from nourish.profile.v1 import profile_pb2

from mesh.runtime import auth, errors, logs
from mesh.runtime.telemetry import gauge, metrics, otlp, private, traces
from mesh.runtime.telemetry.tests.collector import Collector
from mesh.runtime.testing import as_user, serve_in_memory

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
RECORDED = ("traceparent", f"00-{TRACE}-{PARENT}-01")
NOT_RECORDED = ("traceparent", f"00-{TRACE}-{PARENT}-00")


class Foods(food_pb2_grpc.FoodServiceServicer):
    """Answers, fails, or asks another."""

    def __init__(self, downstream=None):
        self.downstream = downstream
        self.seen = []

    async def GetFood(self, request, context):
        self.seen.append(dict(context.invocation_metadata()))
        match request.name:
            case "foods/missing":
                raise errors.not_found(request.name)
            case "foods/defect":
                raise ValueError("of no use")
            case "foods/slow":
                await asyncio.sleep(30)
        if self.downstream:
            await self.downstream.GetFood(request)
        return food_pb2.Food(name=request.name)


def request(name="foods/x"):
    return food_pb2.GetFoodRequest(name=name)


async def ask(*metadata, name="foods/x", seconds=None, foods=None):
    async with serve_in_memory(foods or Foods()) as channel:
        stub = food_pb2_grpc.FoodServiceStub(channel._channel)  # a caller that does not trace
        try:
            await stub.GetFood(request(name), metadata=metadata, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.fixture
async def collector():
    async with Collector() as running:
        yield running


@pytest.fixture
async def two_deep(collector):
    """A call to a service that calls another, and the spans of both by name and kind."""
    inner = Foods()
    async with otlp.sending(collector.address, share=0.0):
        async with serve_in_memory(inner) as channel:
            outer = Foods(food_pb2_grpc.FoodServiceStub(channel))
            await ask(RECORDED, ("x-request-id", "r-1"), foods=outer)
    return inner, collector.spans


async def test_a_call_and_the_calls_that_it_makes_are_one_trace(two_deep):
    inner, spans = two_deep
    server, client, below = sorted(spans, key=lambda span: span.start_time_unix_nano)
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert [span.kind for span in (server, client, below)] == [traces.SERVER, traces.CLIENT, traces.SERVER]
    assert server.parent_span_id.hex() == PARENT
    assert client.parent_span_id == server.span_id
    assert below.parent_span_id == client.span_id
    assert inner.seen[0]["traceparent"] == f"00-{TRACE}-{client.span_id.hex()}-01"


async def test_a_span_says_method_outcome_and_request(two_deep):
    _, spans = two_deep
    for span in spans:
        about = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
        assert span.name == "nourish.food.v1.FoodService/GetFood"
        assert (about["rpc.method"], about["rpc.grpc.status_code"], about["request_id"]) == ("GetFood", 0, "r-1")
        assert span.end_time_unix_nano > span.start_time_unix_nano


async def test_a_trace_that_is_not_recorded_is_passed_on_and_not_sent(collector):
    inner = Foods()
    async with otlp.sending(collector.address, share=1.0):
        async with serve_in_memory(inner) as channel:
            await ask(NOT_RECORDED, foods=Foods(food_pb2_grpc.FoodServiceStub(channel)))
    assert inner.seen[0]["traceparent"] == NOT_RECORDED[1]
    assert collector.spans == []


@pytest.mark.parametrize("header", ["", "00-xyz-1-01", "ff-" + RECORDED[1][3:], RECORDED[1] + "-1", "00" * 4000])
async def test_a_malformed_context_records_nothing_and_fails_no_call(collector, header):
    async with otlp.sending(collector.address, share=0.0):
        assert await ask(("traceparent", header)) == grpc.StatusCode.OK
    assert collector.spans == []


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (1.0, 1)])
async def test_of_the_traces_that_begin_here_a_share_is_recorded(collector, share, number):
    async with otlp.sending(collector.address, share=share):
        await ask()
    assert len(collector.spans) == number


@pytest.mark.parametrize(("name", "failed"), [("foods/missing", False), ("foods/defect", True)])
async def test_a_span_has_failed_if_the_service_has_not_if_the_request_was_wrong(collector, name, failed):
    async with otlp.sending(collector.address, share=1.0):
        await ask(name=name)
    assert [bool(span.status.message) for span in collector.spans] == [failed]


async def test_a_block_is_a_span_of_its_own_and_what_it_calls_its_child(collector):
    async with otlp.sending(collector.address, share=1.0):
        with pytest.raises(KeyError), traces.span("outer"):
            with traces.span("inner", shelf="a"):
                pass
            raise KeyError
    inner, outer = collector.spans
    assert (inner.trace_id, inner.parent_span_id) == (outer.trace_id, outer.span_id)
    assert (outer.status.message, inner.status.message) == ("KeyError", "")
    assert auth.TRACE_HEADER not in auth.current.get().headers


async def test_a_collector_that_is_away_costs_spans_and_not_calls():
    async with otlp.sending("127.0.0.1:1", share=1.0):
        for _ in range(otlp.MOST_SPANS + 5):
            with traces.span("x"):
                pass
        assert "telemetry_spans_dropped_total 5" in metrics.text().splitlines()
        assert await ask() == grpc.StatusCode.OK


@pytest.mark.parametrize(("code", "taken"), [("UNAVAILABLE", ["a", "b"]), ("INVALID_ARGUMENT", ["b"])])
async def test_what_is_refused_is_sent_again_if_that_may_help(collector, code, taken, monkeypatch, caplog):
    monkeypatch.setattr(otlp, "SPANS_SECONDS", 0.05)
    collector.refusals = [grpc.StatusCode[code]]
    async with otlp.sending(collector.address, share=1.0):
        for name in ("a", "b"):
            with traces.span(name):
                pass
            async with asyncio.timeout(10):
                while name == "a" and not caplog.records:  # of the refusal
                    await asyncio.sleep(0.01)
    assert [span.name for span in collector.spans] == taken


async def test_counts_reach_the_collector(collector):
    async with otlp.sending(collector.address, share=0.0):
        await ask()
    found = collector.metrics
    (point,) = [p for p in found["grpc_server_handled_total"].sum.data_points if "GetFood" in str(p) and "OK" in str(p)]
    assert point.as_double >= 1
    (took,) = [p for p in found["grpc_server_handling_seconds"].histogram.data_points if "GetFood" in str(p)]
    assert sum(took.bucket_counts) == took.count >= 1
    assert len(took.bucket_counts) == len(took.explicit_bounds) + 1
    names = {a.key: a.value.string_value for a in collector.resources[-1].attributes}
    assert names["service.namespace"] == "nourish"


def figures() -> dict[str, float]:
    """What Prometheus would read, by name and labels."""
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in metrics.text().splitlines()
        if not line.startswith("#")
    }


def grown(before: dict[str, float], name: str) -> dict[str, float]:
    """By how much each of a name's values for GetFood has grown, by the code in its labels."""
    found = {}
    for key, value in figures().items():
        if key.startswith(name + "{") and "GetFood" in key and value != before.get(key, 0):
            found[key.partition('grpc_code="')[2].partition('"')[0]] = value - before.get(key, 0)
    return found


async def test_each_call_is_counted_by_how_it_ended():
    before = figures()
    for name in ("foods/x", "foods/x", "foods/missing", "foods/defect", "BAD"):
        await ask(name=name)
    await ask(name="foods/slow", seconds=0.05)
    counted = {"OK": 2, "NotFound": 1, "Internal": 1, "InvalidArgument": 1, "DeadlineExceeded": 1}
    assert grown(before, "grpc_server_handled_total") == counted
    assert grown(before, "grpc_server_handling_seconds_count") == {"": 6}
    assert grown(before, "grpc_server_in_flight") == {}


async def test_a_call_that_its_caller_cancels_is_counted_as_such():
    before, foods = figures(), Foods()
    async with serve_in_memory(foods) as channel:
        call = food_pb2_grpc.FoodServiceStub(channel).GetFood(request("foods/slow"))
        while not foods.seen:
            await asyncio.sleep(0.01)
        assert grown(before, "grpc_server_in_flight") == {"": 1}
        call.cancel()
        async with asyncio.timeout(5):
            while not grown(before, "grpc_server_handled_total"):
                await asyncio.sleep(0.01)
    assert grown(before, "grpc_server_handled_total") == {"Cancelled": 1}


def test_a_figure_is_read_when_asked_and_one_that_fails_hides_no_other(caplog):
    shelf = {(("shelf", 'a"b\n'),): 2.0}
    gauge("test_books", "Books.", lambda: shelf)
    gauge("test_broken", "Broken.", lambda: 1 / 0)
    assert r'test_books{shelf="a\"b\n"} 2.0' in metrics.text().splitlines()
    shelf[(("shelf", 'a"b\n'),)] = 3.0
    assert r'test_books{shelf="a\"b\n"} 3.0' in metrics.text().splitlines()
    assert "test_broken" not in metrics.text()
    assert "ZeroDivisionError" in caplog.text
    for name in ("test_books", "test_broken"):
        del metrics._read[name]


def asked(path: Path, method: str, target: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("here")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(5)
    connection.sock.connect(str(path))
    connection.request(method, target)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_a_process_answers_on_its_socket_while_its_event_loop_hangs(tmp_path):
    where = tmp_path / "telemetry.sock"
    with private.answering(where):
        assert where.stat().st_mode & 0o077 == 0
        status, text = asked(where, "GET", "/metrics")  # this thread is the loop's, and waits
        assert status == 200
        assert "\nprocess_cpu_seconds_total " in text
        assert asked(where, "GET", "/else")[0] == 404
        with socket.socket(socket.AF_UNIX) as silent:  # one that says nothing is let go
            silent.connect(str(where))
            silent.sendall(b"\r\n\r\n")
            silent.settimeout(5)
            assert b"404" in silent.recv(100)
    assert not where.exists()


def formatted(message, *args, **extra) -> dict[str, object]:
    record = logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, message, args, None, extra=extra)
    return json.loads(logs.JsonFormatter().format(record))


def test_a_log_line_names_request_trace_caller_and_user():
    headers = {**dict(as_user("alice", caller="planner")), **dict([RECORDED]), "x-request-id": "r-1"}
    token = auth.current.set(auth.CallInfo(headers=headers, method="/a.B/C"))
    try:
        line = formatted("said")
    finally:
        auth.current.reset(token)
    facts = ("request_id", "trace_id", "span_id", "method", "caller", "user")
    assert [line[fact] for fact in facts] == ["r-1", TRACE, PARENT, "/a.B/C", "planner", "alice"]


def test_a_message_in_a_log_line_is_shown_without_its_sensitive_fields():
    profile = profile_pb2.Profile(name="profiles/alice", weight_kg=61.5)
    for line in (formatted("said %s", profile), formatted("said", about=profile), formatted("said", about=[profile])):
        assert "profiles/alice" in str(line)
        assert "61.5" not in str(line)
        assert "weight_kg" in str(line)
    assert profile.weight_kg == 61.5
