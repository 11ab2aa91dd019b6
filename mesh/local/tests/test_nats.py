"""The embedded NATS, on its real binary."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nats as client
import pytest
from nats.js.api import StreamConfig

from mesh.local import nats
from mesh.local.errors import MissingWheelError, StartError
from mesh.local.nats import Nats
from mesh.local.process import is_alive

MARK = {"NOURISH_RUN": "/nowhere"}


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="nats-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


async def test_what_it_acknowledged_is_there_after_it_was_killed_and_at_the_same_address(home: Path) -> None:
    server = Nats(home, MARK)
    await server.start()
    try:
        url = server.url
        async with await client.connect(url) as connection:
            stream = connection.jetstream()
            await stream.add_stream(StreamConfig(name="kept", subjects=["kept"]))
            await stream.publish("kept", b"brocoli")
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        await server.wait()
        await server.start()
        assert server.url == url
        async with await client.connect(url) as connection:
            assert (await connection.jetstream().get_msg("kept", 1)).data == b"brocoli"
    finally:
        await server.stop()


async def test_nobody_comes_in_without_the_password_which_is_the_owners_alone(home: Path) -> None:
    server = Nats(home, MARK)
    await server.start()
    try:
        without = "nats://" + server.url.rpartition("@")[2]
        for url in (without, without.replace("//", "//nourish:guess@")):
            with pytest.raises(Exception, match="Authorization Violation"):
                await client.connect(url, allow_reconnect=False)
        for name in ("password", "nats.conf"):
            assert stat.S_IMODE((home / "nats" / name).stat().st_mode) == 0o600
        assert server.url.rpartition("@")[2].startswith("127.0.0.1:")
    finally:
        await server.stop()


async def test_each_home_has_its_own_password_and_keeps_it(home: Path) -> None:
    def passwords(*homes: str) -> set[str]:
        return {Nats(home / name, MARK)._password() for name in homes}

    assert len(passwords("a", "b")) == 2
    assert passwords("a") == passwords("a")


async def test_it_ends_when_the_process_that_started_it_is_killed(home: Path) -> None:
    script = (
        "import asyncio, sys, pathlib\nfrom mesh.local.nats import Nats\n"
        "async def main():\n server = Nats(pathlib.Path(sys.argv[1]), {})\n"
        " await server.start(); print(server.pid, flush=True); await asyncio.sleep(600)\nasyncio.run(main())"
    )
    argv = [sys.executable, "-c", script, str(home)]
    runner = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert runner.stdout
    pid = int(await runner.stdout.readline())
    runner.kill()
    await runner.wait()
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, "NATS outlived its runner"
        await asyncio.sleep(0.02)


async def test_a_server_that_cannot_start_says_what_its_log_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats, "SETTINGS", nats.SETTINGS.replace("sync_interval: always", "sync_interval: never"))
    with pytest.raises(StartError, match="sync_interval"):
        await Nats(home, MARK).start()


async def test_a_missing_wheel_names_the_package(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats, "PACKAGE", "no-such-package")
    with pytest.raises(MissingWheelError, match=r"no-such-package.*make up"):
        await Nats(home, MARK).start()
