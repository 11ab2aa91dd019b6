"""What a recording keeps of a call, how it samples, and what it says of a file that is none."""

from __future__ import annotations

import base64
import json
import re
import struct

import pytest
from nourish.profile.v1 import profile_pb2

from mesh.contract import Contract
from mesh.dynamic import Codec, pool
from mesh.replay.play import Replay
from mesh.replay.record import Recorder, UnusableError, recordable, recorded
from mesh.replay.recording import Header, RecordingError, digest, line, read
from mesh.replay.tap import _documents, below

CONTRACT = Contract.read()
TYPES = pool(CONTRACT.descriptors)
METHODS = {m.path: Codec(TYPES, m) for ms in CONTRACT.methods.values() for m in ms if recordable(m)}
PROFILE = "/nourish.profile.v1.ProfileService/GetProfile"


def trace(request, answer, status="0", **answered):
    def side(message, headers, **more):
        data = message.SerializeToString()
        body = {"as_bytes": base64.b64encode(struct.pack(">BI", 0, len(data)) + data).decode(), "truncated": False}
        found = [{"key": key, "value": value} for key, value in headers.items()]
        return {"headers": found, "body": body, "headers_received_time": "2026-11-25T12:00:00.001Z", **more}

    headers = {":path": PROFILE, "authorization": "Bearer SECRET", "x-nourish-user": "ada", "x-request-id": "1"}
    trailers = [{"key": "grpc-status", "value": status}, {"key": "grpc-message", "value": "Ada is not here"}]
    asked, told = side(request, headers), side(answer, {}, trailers=trailers, **answered)
    return {"http_buffered_trace": {"request": asked, "response": told}}


def ada():
    return trace(
        profile_pb2.GetProfileRequest(name="profiles/1"), profile_pb2.Profile(name="profiles/1", display_name="Ada")
    )


def test_no_header_and_no_sensitive_field_is_in_a_recorded_line():
    call = recorded(ada(), METHODS)
    assert json.loads(line(call)) == {
        "method": PROFILE,
        "request": {"name": "profiles/1"},
        "code": "OK",
        "answer": {"name": "profiles/1"},
        "ms": 0.0,
        "user": True,
        "masked": [],
    }
    missing = recorded(trace(profile_pb2.GetProfileRequest(), profile_pb2.Profile(), status="5"), METHODS)
    assert (missing.code, missing.answer) == ("NOT_FOUND", None)
    assert "Ada" not in line(missing)


@pytest.mark.parametrize(("change", "why"), [({"status": "14"}, "UNAVAILABLE"), ({"status": ""}, "CANCELLED")])
def test_a_call_that_failed_is_not_recorded_and_says_how(change, why):
    with pytest.raises(UnusableError, match=why):
        recorded(trace(profile_pb2.GetProfileRequest(), profile_pb2.Profile(), **change), METHODS)


def test_a_recorder_that_is_full_takes_no_more():
    calls = []
    recorder = Recorder(METHODS, calls.append, 2)
    for _ in range(3):
        recorder.take(ada())
    assert (len(calls), recorder.full, dict(recorder.recorded)) == (2, True, {PROFILE: 2})


def test_a_cut_or_unreadable_body_is_not_recorded():
    cut, strange = {"as_bytes": "", "truncated": True}, {"as_bytes": base64.b64encode(b"strange").decode()}
    for body, why in ((cut, "too large"), (strange, "not readable")):
        with pytest.raises(UnusableError, match=why):
            recorded(trace(profile_pb2.GetProfileRequest(), profile_pb2.Profile(), body=body), METHODS)


@pytest.mark.parametrize("share", [1 / 4096, 0.01, 0.1, 0.25, 0.5, 0.999, 0.99999])
def test_a_share_takes_that_share_of_all_request_ids(share):
    taken = sum(bool(re.fullmatch(f"(?:{below(share)}).*", f"{n:03x}7893e")) for n in range(4096))
    assert taken == min(round(share * 4096), 4095)


async def test_the_stream_is_read_wherever_its_chunks_end():
    documents = [{"a": "ü{"}, {"b": [1, {"c": "}"}]}]
    whole = "\n".join(json.dumps(d, indent=1, ensure_ascii=False) for d in documents).encode()
    for size in (1, 3, len(whole)):

        async def chunks(size=size):
            for at in range(0, len(whole), size):
                yield whole[at : at + size]

        assert [d async for d in _documents(chunks())] == documents


def test_a_file_comes_back_as_written_and_a_bad_line_is_named(tmp_path):
    header, call = Header("profile", digest(CONTRACT), "2026-11-25T12:00:00.000+00:00", 0.1), recorded(ada(), METHODS)
    path = tmp_path / "recording.jsonl"
    path.write_text(line(header) + line(call))
    found, calls = read(path)
    assert (found, line(calls[0])) == (header, line(call))
    path.write_text(line(header) + line(call)[:20])
    with pytest.raises(RecordingError, match=r"recording\.jsonl:2: "):
        read(path)
    path.write_text("")
    with pytest.raises(RecordingError, match=r"recording\.jsonl:1: "):
        read(path)


async def test_a_users_call_is_left_out_with_the_reason_unless_a_user_is_named():
    calls = [recorded(ada(), METHODS)]
    report = await Replay(METHODS, "canary", "recorded", 0, None).run(None, calls, 1)
    assert report.compared == 0
    assert [(count, "--user" in reason) for reason, count in report.skipped.items()] == [(1, True)]
