"""`mesh gen`: the contracts in `protos/` become the committed code in `gen/`.

buf checks and builds one descriptor set; Python is generated from that set by grpcio-tools, Go and TypeScript by their
own plug-ins through `buf.gen.yaml`. Everything comes out of pinned packages: nothing is fetched but by pip, npm and go.
"""

from __future__ import annotations

import ast
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mesh.cli._protoprint import print_file

ROOT = Path(__file__).resolve().parents[2]
DEPS = ROOT / ".deps" / "protos"
BIN = Path(sys.executable).parent
GOOGLE = ("google/api", "google/longrunning", "google/rpc", "google/type")
GENERATED = ("nourish", "buf", "google/longrunning")  # Go has no light module of the last two
LANGUAGES = ("python", "go", "ts")
PACKAGES = ("nourish", "buf", "google")
PYTHON_OUTPUTS = ("python", "grpc_python", "mypy", "mypy_grpc")


class GenerationError(Exception):
    """A generator failed; the message is what it printed."""


def generate(out: Path) -> None:
    """Writes all generated code under `out` (normally `gen/`).

    Raises:
        GenerationError: a contract does not build, or a plug-in failed.
    """
    prepare_imports()
    _prepare_plugins()
    out.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        for package in PACKAGES:
            shutil.rmtree(out / language / package, ignore_errors=True)
    descriptors = out / "descriptors.binpb"
    _run(str(BIN / "buf"), "build", "--as-file-descriptor-set", "-o", str(descriptors))
    _generate_python(out / "python", descriptors)
    paths = [part for path in GENERATED for part in ("--path", path)]
    _run(str(BIN / "buf"), "generate", str(descriptors), *paths, "-o", str(out))


def check() -> list[str]:
    """Returns the committed generated files that `protos/` would not give today, empty when all is fresh."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {p.relative_to(scratch) for p in Path(scratch).rglob("*") if p.is_file()}
        committed = {p.relative_to(ROOT / "gen") for p in _committed()}
        stale = {p for p in fresh & committed if not filecmp.cmp(Path(scratch) / p, ROOT / "gen" / p, shallow=False)}
        return sorted(str(p) for p in (fresh ^ committed) | stale)


def _committed() -> list[Path]:
    trees = [ROOT / "gen" / language / package for language in LANGUAGES for package in PACKAGES]
    files = [p for tree in trees for p in tree.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return [*files, ROOT / "gen" / "descriptors.binpb"]


def _generate_python(out: Path, descriptors: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    ours = sorted(str(p.relative_to(ROOT / "protos")) for p in (ROOT / "protos").rglob("*.proto"))
    flags = [f"--{kind}_out={out}" for kind in PYTHON_OUTPUTS]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={descriptors}"]
    _run(*protoc, *flags, *ours, "buf/validate/validate.proto")
    for pattern in ("*_pb2_grpc.py", "*_pb2_grpc.pyi"):
        for stub in out.rglob(pattern):
            if "_to_server" not in stub.read_text():
                stub.unlink()  # a file without services: grpc_python writes an empty shell


def prepare_imports() -> None:
    """Puts the third-party contracts that ours import into `.deps/protos`, out of the pinned wheels."""
    shutil.rmtree(DEPS, ignore_errors=True)
    google = Path(next(iter(find_spec("google.api").submodule_search_locations)))  # type: ignore[union-attr,arg-type]
    for folder in GOOGLE:
        target = DEPS / folder
        target.mkdir(parents=True)
        for source in (google.parent.parent / folder).glob("*.proto"):
            # The wheel calls google/longrunning/operations.proto by another name than its own code does.
            shutil.copy(source, target / source.name.replace("_proto.", "."))
    (DEPS / "buf/validate").mkdir(parents=True)
    (DEPS / "buf/validate/validate.proto").write_text(print_file(_validate_descriptor()))


def _validate_descriptor() -> descriptor_pb2.FileDescriptorProto:
    """protovalidate's own contract: the largest bytes literal of its generated module."""
    package = Path(find_spec("protovalidate").origin).parent  # type: ignore[union-attr,arg-type]
    tree = ast.parse((package / "_gen/buf/validate/validate_pb.py").read_text())
    literals = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, bytes)]
    serialized = max(literals, key=len)
    # Parse the options in a pool where validate.proto's own extensions are known, so that they can be printed by name.
    pool = descriptor_pool.DescriptorPool()
    for module in ("descriptor", "duration", "timestamp", "field_mask"):
        pb2 = __import__(f"google.protobuf.{module}_pb2", fromlist=["DESCRIPTOR"])
        pool.AddSerializedFile(pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(serialized)
    message_factory.GetMessageClassesForFiles(["google/protobuf/descriptor.proto", "buf/validate/validate.proto"], pool)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FileDescriptorProto"))
    parsed: Any = kind.FromString(serialized)
    parsed.options.ClearField("go_package")
    return parsed  # type: ignore[no-any-return]


def _prepare_plugins() -> None:
    if not (ROOT / "gen/ts/node_modules/.bin/protoc-gen-es").exists():
        _run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=ROOT / "gen/ts")


def _run(*command: str, cwd: Path = ROOT) -> None:
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "GOTOOLCHAIN": "local"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GenerationError(f"{Path(command[0]).name} {command[1]}: {done.stdout}{done.stderr}".strip())
