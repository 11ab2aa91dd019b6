"""A setting has the type of its default, whatever the values say, and tells of each change."""

import asyncio
import itertools
import logging

import pytest

from mesh.runtime import setting, settings
from mesh.runtime.testing import with_settings

_names = (f"test.name{n}" for n in itertools.count())


@pytest.fixture
def name() -> str:
    """One that no other test has declared."""
    return next(_names)


def test_without_values_it_is_the_default(name):
    """So a unit test needs no mesh."""
    assert setting(name, 0.3).value == 0.3


@pytest.mark.parametrize(
    ("default", "given", "value"),
    [(0.3, 1.0, 1.0), (0.3, 2, 2.0), (3, 4.0, 4), (True, False, False), ("a", "", ""), ("a", "5", "5")],
)
def test_a_value_comes_in_the_type_of_the_default(name, default, given, value):
    """All numbers come as floats over the wire."""
    found = setting(name, default)
    with with_settings({name: given}):
        assert (found.value, type(found.value)) == (value, type(default))
    assert found.value == default


@pytest.mark.parametrize(
    ("default", "given", "wanted"),
    [
        (0.3, "0.4", "a number"),
        (0.3, True, "a number"),
        (3, 3.5, "a whole number"),
        (3, True, "a whole number"),
        (True, 1.0, "true or false"),
        (True, "true", "true or false"),
        ("a", 5.0, "a text"),
    ],
)
def test_a_wrong_type_is_logged_once_and_the_last_good_value_stays(name, default, given, wanted, caplog):
    """Another change beside it does not repeat the line."""
    found = setting(name, default)
    good = {0.3: 0.5, 3: 7, True: False, "a": "b"}[default]
    with with_settings({name: good}), with_settings({name: given}), with_settings({name: given, "other": 1}):
        assert found.value == good
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert line == f"{name}: {given!r} is not {wanted}; it stays {good!r}"


def test_what_is_out_of_bounds_is_refused_too(name, caplog):
    found = setting(name, 0.3, within=(0, 1))
    with with_settings({name: 1.5}):
        assert found.value == 0.3
    assert f"{name}: 1.5 is not a number from 0 to 1; it stays 0.3" in caplog.messages


def test_one_name_has_one_meaning(name):
    """The same declaration gives the same setting, another default is a mistake."""
    assert setting(name, 1) is setting(name, 1)
    for other in (2, 1.0, True):
        with pytest.raises(ValueError, match=f"{name}' is declared already, with the default 1"):
            setting(name, other)


def test_a_setting_that_is_declared_late_has_what_the_values_say_already(name):
    with with_settings({name: "there"}):
        assert setting(name, "").value == "there"


def test_a_name_that_nothing_reads_is_said(name, caplog):
    """A typing error in the values would be silent otherwise."""
    setting(name, 1)
    with with_settings({"test.nmae": 2}):
        assert [m for m in caplog.messages if m.startswith("nothing here reads test.nmae; there is ") and name in m]


async def test_changes_yields_each_new_value_and_of_a_burst_the_last(name):
    found = setting(name, 0)
    changes = found.changes()
    with with_settings({name: 1}), with_settings({name: 2}):
        assert await asyncio.wait_for(anext(changes), 5) == 2
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        assert not waiting.done()
        with with_settings({name: 2, "other": 1}):
            await asyncio.sleep(0)
            assert not waiting.done()
    assert await asyncio.wait_for(waiting, 5) == 0


async def test_a_service_that_declares_none_opens_no_stream(monkeypatch):
    """And its start does not wait for any."""
    monkeypatch.setattr(settings, "egress", lambda: pytest.fail("a stream was opened"))
    told = asyncio.Event()
    task = asyncio.create_task(settings.Process().follow(told))
    await asyncio.wait_for(told.wait(), 5)
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
