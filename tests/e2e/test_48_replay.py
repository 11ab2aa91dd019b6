"""Real calls are recorded while they are made; the canary answers them as before, or the command says what differs."""

import asyncio
import json
import stat
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import under_load

CALLS = 40


@pytest.fixture
async def recording(mesh) -> Path:
    """Forty calls of people who look for foods."""

    async def read(client: httpx.AsyncClient) -> httpx.Response:
        listed = await client.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 3})
        return await client.get(f"{mesh.url}/api/v1/{listed.json()['foods'][1]['name']}")

    found: dict = {}

    async def record() -> None:
        more = ("--share", "100%", "--limit", str(CALLS), "--for", "30s")
        found.update(await asyncio.to_thread(mesh.json, "record", "food", *more))

    load = await under_load(read, record, callers=2)
    assert load.failures == []
    assert sum(found["recorded"].values()) == CALLS
    assert set(found["recorded"]) == {"ListFoods", "GetFood"}
    return Path(found["file"])


async def test_the_canary_answers_recorded_calls_as_before_and_an_edited_answer_is_named(mesh, recording):
    assert recording.parent == mesh.home / "recordings"
    assert stat.S_IMODE(recording.stat().st_mode) == 0o600
    assert "x-request-id" not in recording.read_text()
    for against in ("recorded", "stable"):
        same = mesh.json("replay", str(recording), "--to", "canary", "--against", against)
        assert (same["compared"], same["differing"], same["skipped"]) == (CALLS, [], {})
        assert same["ms"]["canary"]["p99"] >= same["ms"]["canary"]["p50"] > 0

    lines = recording.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if '/GetFood"' in line)
    call = json.loads(lines[number])
    call["answer"]["displayName"] = "a stone"
    recording.write_text("\n".join([*lines[:number], json.dumps(call), *lines[number + 1 :]]))
    said = mesh.run("replay", str(recording), expect=11).stdout
    assert f"line {number + 1}: GetFood" in said
    assert "display_name: 'a stone' -> " in said
    assert f"{CALLS} calls compared, 1 answered otherwise" in said
