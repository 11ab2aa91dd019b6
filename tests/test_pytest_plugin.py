"""The pytest plug-in as a service developer has it: sessions of their own, which share one real mesh."""

import os
import subprocess
import sys

import pytest

from mesh.local.guard import afterwards

STORY = """
import os
from nourish.profile.v1.profile_pb2 import CreateProfileRequest, ListProfilesRequest, Profile
from nourish.profile.v1.profile_pb2_grpc import ProfileServiceStub
from mesh.runtime.db import Rows
import grpc, pytest, sqlalchemy as sa


async def test_a_user_through_the_edge(mesh_up):
    mesh = mesh_up("profile")
    profiles = mesh.stub(ProfileServiceStub, user="alice")
    made = await profiles.CreateProfile(CreateProfileRequest(profile=Profile(display_name="Me")))
    async with mesh.database("profile") as db, db.connection(Rows.EVERYONES) as connection:
        found = await connection.execute(sa.text("SELECT owner FROM profile WHERE id = :id"), {"id": made.name[9:]})
        assert found.scalar_one() == "alice"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await mesh.stub(ProfileServiceStub).ListProfiles(ListProfilesRequest())
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_which(mesh_up):
    mesh = mesh_up("profile")
    print("it is", mesh.state()["pid"], sorted(i["service"] for i in mesh.state()["instances"]))
    assert not os.environ.get("FAIL")
"""


@pytest.fixture
def session(tmp_path):
    """Runs the story in a session of its own, and gives what it prints."""
    (tmp_path / "test_story.py").write_text(STORY)
    own = {"MESH_HOME": str(tmp_path / "home"), "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode")}
    left_out = ("PYTEST", "CI", "PYTHONDONTWRITEBYTECODE")
    env = {**{name: value for name, value in os.environ.items() if not name.startswith(left_out)}, **own}
    pytest_ = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        os.devnull,
        "-o",
        "asyncio_mode=auto",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-p",
        "no:cacheprovider",
    ]

    def run(*arguments, expect=0, **more):
        command = [*pytest_, "--rootdir", str(tmp_path), str(tmp_path), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env={**env, **more}, capture_output=True, text=True, timeout=120)
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout

    with afterwards([*pytest_, "--mesh-end"], cwd=tmp_path, env=env):
        yield run


def test_sessions_use_one_mesh_again_until_it_is_ended_and_a_failure_shows_its_logs(session, tmp_path):
    def which(output):
        return next(line for line in output.splitlines() if line.startswith("it is"))

    first = which(session("-rP"))
    assert first.endswith("['edge', 'profile']")
    failed = session("-k", "which", "--mesh-keep", "0", expect=1, FAIL="1")
    assert which(failed) == first
    assert "Log of profile-0" in failed
    assert '"serving"' in failed.partition("Log of profile-0")[2]
    assert not list(tmp_path.rglob("state.json"))  # it is ended
