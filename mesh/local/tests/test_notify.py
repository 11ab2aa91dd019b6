"""The runner's end of sd_notify."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.local.notify import NotifySocket
from mesh.runtime import notify


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="notify-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def send(path: Path, message: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message.encode(), str(path))


async def test_status_lines_and_readiness_arrive(folder: Path) -> None:
    said: list[str] = []
    listener = NotifySocket(folder / "notify.sock", said.append)
    await listener.open()
    send(listener.path, "STATUS=importing: 1 of 2")
    send(listener.path, "STATUS=done\nREADY=1\nUNKNOWN=x")
    await asyncio.wait_for(listener.ready.wait(), 5)
    assert said == ["importing: 1 of 2", "done"]
    listener.close()


async def test_a_process_without_a_sidecar_says_where_it_takes_calls(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the runtime words it, and no longer when the next run begins."""
    listener = NotifySocket(folder / "notify.sock", lambda _: None)
    await listener.open()
    monkeypatch.setenv("NOTIFY_SOCKET", str(listener.path))
    notify.bound(40123)
    notify.ready()
    await asyncio.wait_for(listener.ready.wait(), 5)
    assert listener.port == 40123
    await listener.open()
    assert listener.port is None
    listener.close()


async def test_a_new_run_must_become_ready_again(folder: Path) -> None:
    listener = NotifySocket(folder / "notify.sock", lambda _: None)
    await listener.open()
    send(listener.path, "READY=1")
    await asyncio.wait_for(listener.ready.wait(), 5)
    await listener.open()
    assert not listener.ready.is_set()
    listener.close()


async def test_what_is_not_text_does_no_harm(folder: Path) -> None:
    listener = NotifySocket(folder / "notify.sock", lambda _: None)
    await listener.open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"\xff\xfe", str(listener.path))
    send(listener.path, "READY=1")
    await asyncio.wait_for(listener.ready.wait(), 5)
    listener.close()
