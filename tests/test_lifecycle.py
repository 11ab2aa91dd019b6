"""Starting and stopping: one runner a home, two homes side by side, nothing left behind."""

import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import httpx

from mesh.local.guard import WAIT
from tests.e2e.harness import Mesh, running, wait_until


def processes_of(mesh: Mesh, run: str = "") -> list[str]:
    """Command lines of the processes that belong to this home, or to its folder of sockets, whoever started them."""
    marks = [mark.encode() for mark in (str(mesh.home), run) if mark]
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            except OSError:
                continue
            if any(mark in text for mark in marks) and WAIT.encode() not in text:  # that one is the test's
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@contextmanager
def in_foreground(mesh: Mesh, *services: str):
    """`mesh up` as in a terminal; gives the process."""
    command = mesh.command("up", *services)
    process = subprocess.Popen(
        command, cwd=mesh.root, env=mesh.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)
        mesh.run("down", "--wipe", expect=None)


def is_up(mesh: Mesh) -> bool:
    return (mesh.home / "state.json").exists() and mesh.state()["phase"] == "ready"


def test_ctrl_c_ends_a_foreground_mesh_and_leaves_no_process_and_no_socket(tmp_path):
    mesh = Mesh(tmp_path / "home")
    with in_foreground(mesh, "profile") as process:
        wait_until(lambda: is_up(mesh), 90, "the mesh to be ready")
        run = Path(mesh.state()["run"])
        assert len(processes_of(mesh, str(run))) >= 7  # runner, control plane, PostgreSQL, two Envoys, two apps
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) in (0, 130)
        assert processes_of(mesh, str(run)) == []
        assert not run.exists()
        with socket.socket() as s:
            assert s.connect_ex(("127.0.0.1", mesh.port)) != 0


def test_a_second_up_says_so_and_harms_nothing_and_a_killed_runner_takes_all_with_it(tmp_path):
    mesh, other = Mesh(tmp_path / "home"), Mesh(tmp_path / "other")
    with running(mesh, "profile"):
        before = mesh.state()
        for flags in ([], ["--detach"]):
            second = mesh.run("up", "profile", *flags, expect=4)
            assert str(before["pid"]) in second.stderr
        assert mesh.state() == before
        assert httpx.get(f"{mesh.url}/health").status_code == 200

        other.port = mesh.port  # another clone that was not told to use another port
        taken = other.run("up", "profile", "--detach", expect=None)
        assert taken.returncode not in (0, 4)
        assert str(mesh.port) in taken.stderr
        assert "MESH_PORT" in taken.stderr
        assert processes_of(other) == []

        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: processes_of(mesh, before["run"]) == [], 20, "every process to end with its runner")


def test_data_outlives_a_restart_and_wipe_forgets_it(tmp_path):
    mesh = Mesh(tmp_path / "home")
    with running(mesh, "profile"):
        me = mesh.token("alice", "profile.read", "profile.write")
        httpx.post(f"{mesh.url}/api/v1/profiles", json={"displayName": "Me"}, headers=me).raise_for_status()
        mesh.run("down")
        assert processes_of(mesh) == []
        mesh.run("up", "profile", "--detach", timeout=90)
        me = mesh.token("alice", "profile.read")
        kept = httpx.get(f"{mesh.url}/api/v1/profiles", headers=me).json()["profiles"]
        assert [p["displayName"] for p in kept] == ["Me"]
    assert not mesh.home.exists() or list(mesh.home.iterdir()) == []
