"""Who has a kept mesh, and who ends it: without one."""

import threading

import pytest

from mesh.pytest import kept
from mesh.pytest.kept import Slot


@pytest.fixture
def ended(monkeypatch):
    """The folders whose mesh was ended."""
    found = []
    monkeypatch.setattr(kept, "end", found.append)
    return found


def test_a_slot_is_one_sessions_at_a_time(tmp_path):
    one, other = Slot(tmp_path / "0"), Slot(tmp_path / "0")
    assert one.take()
    assert not other.take()
    one.give()
    assert other.take()


def test_a_session_waits_for_who_only_ends_the_mesh(tmp_path):
    guard, session = Slot(tmp_path / "0"), Slot(tmp_path / "0")
    assert guard.take()
    guard.sign("ending")
    done = threading.Timer(0.2, guard.give)
    done.start()
    assert session.take()
    done.join()


def test_a_mesh_that_nobody_uses_is_ended(tmp_path, ended):
    slot = Slot(tmp_path / "0")
    assert slot.take()
    note = slot.read()
    slot.give()
    kept.end_when_idle(slot.home, note, minutes=0.001)
    assert ended == [slot.home]


@pytest.mark.parametrize("over", [True, False])
def test_a_mesh_that_a_later_session_uses_or_has_used_is_left_to_its_guard(tmp_path, ended, over):
    first, later = Slot(tmp_path / "0"), Slot(tmp_path / "0")
    assert first.take()
    note = first.read()
    first.give()
    assert later.take()
    if over:
        later.give()
    kept.end_when_idle(first.home, note, minutes=0)
    assert ended == []
