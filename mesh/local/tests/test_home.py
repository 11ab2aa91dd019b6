"""HOME and RUN: layout, privacy, one runner a HOME, errors that say what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.local import paths as layout
from mesh.local.background import down
from mesh.local.errors import AlreadyRunningError, DiskFullError, PortTakenError, StateError
from mesh.local.lock import Lock, held, read
from mesh.local.paths import Paths, edge_port
from mesh.local.runner import check_port


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    made = Paths.of(tmp_path, {})
    yield made
    shutil.rmtree(made.run, ignore_errors=True)


def test_home_is_in_the_work_tree_unless_mesh_home_says_otherwise(tmp_path: Path) -> None:
    assert Paths.of(tmp_path, {}).home == tmp_path / ".mesh"
    assert Paths.of(tmp_path, {"MESH_HOME": str(tmp_path / "x")}).home == tmp_path / "x"


def test_two_homes_have_two_run_folders_and_one_home_always_the_same(tmp_path: Path) -> None:
    a, b = Paths(tmp_path / "a"), Paths(tmp_path / "b")
    assert a.run == Paths(tmp_path / "a").run
    assert a.run != b.run


def test_sockets_are_short_enough_however_deep_home_lies(tmp_path: Path) -> None:
    deep = Paths(tmp_path.joinpath(*["folder"] * 40))
    longest = deep.egress_socket("a-service-with-a-rather-long-name-canary-99")
    assert len(os.fsencode(longest)) <= 107  # sun_path, less its end


def test_home_and_run_are_the_owners_alone(paths: Paths) -> None:
    paths.prepare_home()
    paths.prepare_run()
    for folder in (paths.home, paths.identity, paths.run):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_run_is_made_anew(paths: Paths) -> None:
    paths.prepare_run()
    (paths.run / "stale.sock").touch()
    paths.prepare_run()
    assert list(paths.run.iterdir()) == []


def test_a_run_folder_that_others_may_enter_is_refused(paths: Paths) -> None:
    paths.run.mkdir(mode=0o755)
    paths.run.chmod(0o755)
    with pytest.raises(StateError, match="not a private folder"):
        paths.prepare_run()


def test_a_run_folder_that_is_a_link_is_refused(paths: Paths, tmp_path: Path) -> None:
    paths.run.symlink_to(tmp_path)
    with pytest.raises(StateError, match="not a private folder"):
        paths.prepare_run()
    paths.run.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_run_folder_of_another_user_is_refused_and_left_alone(paths: Paths) -> None:
    paths.run.mkdir(mode=0o700)
    os.chown(paths.run, 65534, 65534)
    with pytest.raises(StateError, match="somebody else"):
        paths.prepare_run()
    paths.remove_run()
    assert paths.run.exists()


def test_a_disk_without_room_is_said_before_anything_is_written(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "FIRST_START_BYTES", 10**18)
    with pytest.raises(DiskFullError, match="MESH_HOME"):
        paths.prepare_home()


def test_wiping_leaves_what_is_not_the_meshs(paths: Paths) -> None:
    paths.prepare_home()
    (paths.home / "mine.txt").touch()
    paths.wipe()
    assert [p.name for p in paths.home.iterdir()] == ["mine.txt"]


def test_a_second_runner_is_told_who_the_first_is(paths: Paths) -> None:
    paths.prepare_home()
    with Lock(paths.lock) as first:
        first.describe("http://127.0.0.1:8080")
        with pytest.raises(AlreadyRunningError, match=rf"pid {os.getpid()}, since .*, edge http://127.0.0.1:8080"):
            Lock(paths.lock).__enter__()
        holder = read(paths.lock)
        assert holder
        assert holder.pid == os.getpid()
    assert not held(paths.lock)
    assert read(paths.lock) is None


def test_the_lock_goes_with_a_killed_runner(paths: Paths) -> None:
    paths.prepare_home()
    code = (
        "import sys,pathlib; from mesh.local.lock import Lock\n"
        "with Lock(pathlib.Path(sys.argv[1])): print('on', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(paths.lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as runner:
        assert runner.stdout
        runner.stdout.readline()
        assert held(paths.lock)
        runner.kill()
    with Lock(paths.lock):
        assert held(paths.lock)


async def test_down_of_nothing_is_no_error_and_clears_what_a_killed_runner_left(paths: Paths) -> None:
    paths.prepare_home()
    paths.prepare_run()
    paths.state.write_text(json.dumps({"pid": 1}))
    assert await down(paths.home, wipe=False) is False
    assert not paths.run.exists()
    assert not paths.state.exists()


async def test_down_with_wipe_forgets_all(paths: Paths) -> None:
    paths.prepare_home()
    assert await down(paths.home, wipe=True) is False
    assert not paths.home.exists()


def test_a_taken_port_names_itself_and_mesh_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} .*MESH_PORT"):
            check_port(port)
    check_port(port)


def test_mesh_port_moves_the_edge_and_must_be_a_port() -> None:
    assert edge_port(8080, {}) == 8080
    assert edge_port(8080, {"MESH_PORT": "9000"}) == 9000
    for wrong in ("http", "0", "70000"):
        with pytest.raises(StateError, match="MESH_PORT"):
            edge_port(8080, {"MESH_PORT": wrong})
