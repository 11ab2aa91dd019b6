"""Work that blocks, beside the event loop."""

import asyncio
import os
import threading
import time

import pytest

from mesh.runtime import auth, pools
from mesh.runtime.auth import CallInfo


@pytest.fixture
def call():
    """The current call: alice's, with a minute left."""
    info = CallInfo(time.monotonic() + 60, {auth.USER_HEADER: "alice", auth.REQUEST_ID_HEADER: "r-1"})
    token = auth.current.set(info)
    yield info
    auth.current.reset(token)


def seen():
    """What work sees of the call, and where it is done."""
    return auth.user(), auth.current.get().request_id, auth.time_left() or 0.0, os.getpid(), threading.get_ident()


@pytest.mark.parametrize("way", [pools.blocking, pools.computing])
async def test_work_knows_for_whom_it_is_done_and_how_long_it_may_take(call, way):
    user, request_id, left, process, thread = await way(seen)
    assert (user, request_id) == ("alice", "r-1")
    assert 0 < left <= 60
    assert (process == os.getpid()) == (way is pools.blocking)
    assert thread != threading.get_ident() or process != os.getpid()


@pytest.mark.parametrize("way", [pools.blocking, pools.computing])
async def test_work_may_fail_with_its_own_error(way):
    with pytest.raises(ZeroDivisionError):
        await way(divmod, 1, 0)


async def test_the_event_loop_goes_on_meanwhile():
    go = threading.Event()
    waiting = asyncio.create_task(pools.blocking(go.wait, 20))
    await asyncio.sleep(0)
    go.set()
    assert await waiting


async def test_the_wait_ends_at_the_deadline_and_work_still_in_the_queue_is_not_begun(call, monkeypatch):
    go, begun = threading.Event(), []
    pool = pools.ThreadPoolExecutor(1)
    monkeypatch.setattr(pools, "_threads", lambda: pool)
    call.deadline = time.monotonic() + 0.2
    first, second = pools.blocking(go.wait, 20), pools.blocking(begun.append, 1)
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError, TimeoutError]
    go.set()
    pool.shutdown()
    assert not begun
