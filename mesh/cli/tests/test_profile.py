"""`mesh profile`, on a process that works and waits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.cli import profile
from mesh.cli.tests.conftest import ROOT, Run
from mesh.local.events import InstanceState, ProcessState, State, now
from mesh.local.paths import Paths

WORKING = """
def hot():
    return sum(range(1000))

print("begun", flush=True)
while True:
    hot()
"""


def describe(paths: Paths, pid: int | None) -> None:
    app = ProcessState(pid, pid is not None, 0)
    instance = InstanceState("food-0", "food", "stable", True, 4321, "", app, app)
    State(1, now(), "ready", "http://127.0.0.1:1", str(ROOT), str(paths.run), None, app, (instance,)).write(paths.state)


@pytest.fixture
def service(home: Path) -> Iterator[Paths]:
    """The state of a mesh in which food is at work."""
    paths = Paths.of(ROOT)
    paths.prepare_home()
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", WORKING], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        describe(paths, process.pid)
        yield paths
        process.kill()


def test_the_function_that_costs_most_is_shown_first(service: Paths, run: Run) -> None:
    done = run("profile", "food", "--seconds", "1", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["instance"] == "food-0"
    assert found["functions"][0]["function"].startswith("hot ")
    assert 0.1 < found["functions"][0]["own"] <= found["functions"][0]["total"] <= found["busy"]


def test_a_file_has_the_form_that_its_name_asks_for(service: Paths, run: Run, tmp_path: Path) -> None:
    done = run("profile", "food", "--instance", "food-0", "--seconds", "1", "-o", tmp_path / "flame.svg")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "flame.svg").read_text()
    assert text.startswith("<?xml")
    assert "hot" in text


def test_what_is_not_there_is_said_with_what_is(service: Paths, run: Run) -> None:
    assert "did you mean 'food'" in run("profile", "foot").output
    assert "did you mean 'food-0'" in run("profile", "food", "--instance", "food-1").output
    assert ".svg, .json, .txt" in run("profile", "food", "-o", "x.png").output
    describe(service, None)
    ended = run("profile", "food")
    assert (ended.exit_code, "no process of food is up" in ended.output) == (3, True)


def test_a_process_of_another_language_gets_a_clear_answer(service: Paths, run: Run) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        describe(service, other.pid)
        done = run("profile", "food", "--seconds", "1")
        other.kill()
    assert done.exit_code == 1
    assert "sees Python alone" in done.output


def test_a_process_that_does_nothing_is_said_to_be_idle() -> None:
    """By what py-spy 0.4 says then; whether it finds a sleeping process idle is for chance to say."""
    app = ProcessState(1, True, 0)
    instance = InstanceState("food-0", "food", "stable", True, 4321, "", app, app)
    said = "[2026-11-25T20:09:05Z ERROR inferno::flamegraph] No stack counts found\nError: No stack counts found"
    assert "did nothing meanwhile" in str(profile._explained(instance, said))


def test_stacks_are_counted_by_function_once_each() -> None:
    own, total, looks = profile._counted("a;b;b 3\na;c 1\n\n")
    assert (dict(own), dict(total), looks) == ({"b": 3, "c": 1}, {"a": 4, "b": 3, "c": 1}, 4)
