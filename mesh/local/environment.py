"""What every Python process of the mesh gets from the runner, whoever started the runner."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from mesh.local.paths import Paths

ROOT = Path(__file__).resolve().parents[2]
MARK = "NOURISH_RUN"
NO_BYTECODE, BYTECODE_FOLDER = "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"
BYTECODE = "bytecode"


def python_environment(root: Path, paths: Paths, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a Python process: this tree's code first, and the mark of this mesh's RUN.

    Compiled modules are kept always: without them each process compiles SQLAlchemy and gRPC anew, 2 s of CPU. Who asks
    for no bytecode in the tree gets it in HOME's cache.
    """
    made = {
        **env,
        "PYTHONPATH": os.pathsep.join((str(root), str(root / "gen" / "python"))),
        "PYTHONUNBUFFERED": "1",
        **mark(paths),
    }
    if made.pop(NO_BYTECODE, ""):
        made.setdefault(BYTECODE_FOLDER, str(paths.cache / BYTECODE))
    return made


def keep_bytecode() -> None:
    """Does the same for this process, once there is a HOME to keep it in. Call it before loading anything large."""
    cache = Paths.of(ROOT).cache
    if sys.dont_write_bytecode and not sys.pycache_prefix and cache.is_dir():
        sys.dont_write_bytecode = False
        sys.pycache_prefix = str(cache / BYTECODE)


def mark(paths: Paths) -> dict[str, str]:
    """What tells a process of this mesh from any other, for `end_leftovers`."""
    return {MARK: str(paths.run)}
