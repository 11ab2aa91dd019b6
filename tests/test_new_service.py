"""A scratch service, added by the three edits of CONTRIBUTING in a copy of the tree, comes up and answers."""

import re
import shutil
import subprocess

import httpx
import pytest

from tests.e2e.harness import ROOT, Mesh, running

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


def block(language: str) -> str:
    """The first code block of that language in the guide, without the indent of its list item."""
    lines = re.search(rf"^   ```{language}\n(.*?)^   ```$", GUIDE, re.S | re.M).group(1).splitlines()
    return "\n".join(line.removeprefix("   ") for line in lines) + "\n"


@pytest.fixture
def tree(tmp_path):
    """A copy of the repository in which somebody followed the guide to the letter."""
    copy = tmp_path / "tree"
    ignore = shutil.ignore_patterns(".git", ".venv", ".mesh", "__pycache__", "node_modules", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=ignore)
    (copy / "gen/ts/node_modules").symlink_to(ROOT / "gen/ts/node_modules")
    (copy / "protos/nourish/greet/v1").mkdir(parents=True)
    (copy / "protos/nourish/greet/v1/greet.proto").write_text(block("proto"))
    (copy / "services/greet").mkdir()
    (copy / "services/greet/__init__.py").write_text('"""Greets people."""\n')
    (copy / "services/greet/__main__.py").write_text(block("python"))
    with (copy / "helm/values.yaml").open("a") as values:
        values.write("\n" + block("yaml"))
    return copy


def test_the_three_edits_of_the_guide_give_a_service_behind_the_edge(tree, tmp_path):
    mesh = Mesh(tmp_path / "home", root=tree)
    mesh.run("gen", timeout=300)
    assert "GreetServiceStub" in (tree / "gen/python/nourish/greet/v1/greet_pb2_grpc.pyi").read_text()
    mesh.run("check")
    with running(mesh, "greet"):
        answer = httpx.get(f"{mesh.url}/api/v1/greetings/Ada")
        assert (answer.status_code, answer.json()) == (200, {"text": "Hello, Ada!"})
        assert httpx.get(f"{mesh.url}/api/v1/greetings/{'x' * 51}").json()["details"][0]["reason"] == "INVALID_ARGUMENT"
        assert {i["service"] for i in mesh.state()["instances"]} == {"greet", "edge"}
    assert subprocess.run(["pgrep", "-f", str(tree)], capture_output=True).stdout == b""
