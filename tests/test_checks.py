"""Style, types, import rules, contracts and generated code, each checked by its own tool."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path = ROOT, **env: str) -> None:
    """Runs a tool of this environment; its output is the failure's message."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **env}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "format", "--check", "."], id="formatted"),
        pytest.param(["ruff", "check", "."], id="ruff"),
        pytest.param(["mypy"], id="mypy-strict"),
        pytest.param(["lint-imports"], id="import-linter"),
        pytest.param(["buf", "lint"], id="buf-lint"),
        pytest.param(["buf", "format", "--exit-code", "-d", "protos"], id="buf-format"),
        pytest.param(["mesh", "gen", "--check"], id="gen-check"),
        pytest.param(["mesh", "check"], id="mesh-check"),
    ],
)
def test_the_tree_passes(command):
    run(*command)


def test_the_go_stubs_compile():
    run("go", "vet", "./...", cwd=ROOT / "gen/go", GOTOOLCHAIN="local", GOFLAGS="-mod=readonly")


def test_the_typescript_stubs_compile():
    run("npx", "--no-install", "tsc", "--noEmit", cwd=ROOT / "gen/ts")


def test_a_stale_generated_file_fails_the_check(tmp_path):
    """gen-check can fail: a change of a contract that was not generated is found and named."""
    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns(".git", ".venv", ".mesh", "__pycache__", "node_modules", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=ignore)
    (copy / "gen/ts/node_modules").symlink_to(ROOT / "gen/ts/node_modules")
    stub = copy / "gen/python/nourish/food/v1/food_pb2.pyi"
    stub.write_text(stub.read_text() + "# edited by hand\n")
    command = [sys.executable, "-c", "from mesh.cli.gen import check; print(check())"]
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{copy}:{copy}/gen/python",
    }
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "['python/nourish/food/v1/food_pb2.pyi']", done.stderr
