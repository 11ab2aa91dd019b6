"""Programs in Go and in TypeScript hold endpoints by lease, with the code that is generated for them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.xds.tests.lab import ROOT, Lab, poll
from mesh.xds.tests.test_registry import known, listed, report  # noqa: F401 - a fixture

BIN, PROGRAMS = Path(sys.executable).parent, Path(__file__).parent / "languages"
INVALID = "3 0"  # the gRPC status INVALID_ARGUMENT, no lease


def go(folder: Path) -> list[str]:
    """Built in the module of the generated code, as if it lay there."""
    overlay, program = folder / "overlay.json", folder / "registry"
    there = ROOT / "gen/go/registry/main.go"
    overlay.write_text(json.dumps({"Replace": {str(there): str(PROGRAMS / "registry.go")}}))
    env = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    build = [BIN / "go", "build", "-overlay", overlay, "-o", program, "./registry"]
    done = subprocess.run(build, cwd=ROOT / "gen/go", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [str(program)]


def typescript(_: Path) -> list[str]:
    """Run as it is: node takes the types away."""
    options = ("--experimental-transform-types", "--disable-warning=ExperimentalWarning")
    return [str(BIN / "node"), *options, "--import", str(PROGRAMS / "resolve.mjs"), str(PROGRAMS / "registry.ts")]


@pytest.mark.parametrize("made", [go, typescript])
async def test_a_program_registers_renews_and_withdraws(
    known: Lab,  # noqa: F811
    made: Callable[[Path], list[str]],
    tmp_path: Path,
) -> None:
    """And is told what is wrong with a report, and loses what it does not renew."""
    await report(known, "runner", "front-0")
    command = await asyncio.to_thread(made, tmp_path)
    pipe = asyncio.subprocess.PIPE
    program = await asyncio.create_subprocess_exec(*command, f"{known.folder}/control.sock", stdin=pipe, stdout=pipe)
    assert program.stdin
    assert program.stdout

    async def says(line: str) -> str:
        program.stdin.write(f"{line}\n".encode())
        return (await asyncio.wait_for(program.stdout.readline(), 60)).decode().strip()

    try:
        assert await says("60 store-8 store-9") == "0 60"
        assert await listed(known) == {"runner": ["front-0"], "worker": ["store-8", "store-9"]}
        assert await says("4000 store-9") == INVALID
        assert await says("3600 store-9") == "0 3600"
        assert await listed(known) == {"runner": ["front-0"], "worker": ["store-9"]}
        assert await says("1") == "0 1"
        assert await listed(known) == {"runner": ["front-0"]}
        assert await says("1 store-9") == "0 1"

        async def gone() -> bool:
            return await listed(known) == {"runner": ["front-0"]}

        await poll(gone)
        program.stdin.close()
        assert await asyncio.wait_for(program.wait(), 20) == 0
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()
