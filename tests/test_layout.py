"""The house rules that a reader relies on: sizes, names, and that nothing is forgotten."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (".py", ".lua", ".proto", ".yaml", ".tpl", ".md")
PLATFORM_PACKAGES = {"mesh", "type", "error"}  # contracts that are not a service's
MAX_FILE, MAX_FUNCTION, MAX_MAIN, MAX_README = 500, 60, 30, 120


def tracked() -> list[Path]:
    """Every file of the repository, or that would be: ignored files do not count."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:  # an unpacked archive
        return [p for p in ROOT.rglob("*") if p.is_file() and not {".venv", ".git"} & set(p.parts)]
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


FILES = tracked()
WRITTEN = [p for p in FILES if p.suffix in SOURCES and p.relative_to(ROOT).parts[0] != "gen"]
PYTHON = [p for p in WRITTEN if p.suffix == ".py"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", WRITTEN, ids=relative)
def test_a_file_is_short_enough_to_read(path):
    limit = {"__main__.py": MAX_MAIN, "README.md": MAX_README}.get(path.name, MAX_FILE)
    assert len(path.read_text().splitlines()) <= limit


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_a_function_is_short_enough_to_see(path):
    functions = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [
        f"{f.name} has {f.end_lineno - f.lineno + 1} lines"
        for f in functions
        if f.end_lineno - f.lineno >= MAX_FUNCTION
    ]
    assert not long


def test_every_contract_package_has_a_service_folder_and_a_stanza_and_the_reverse():
    packages = {p.name for p in (ROOT / "protos/nourish").iterdir() if p.is_dir()} - PLATFORM_PACKAGES
    folders = {p.name for p in (ROOT / "services").iterdir() if p.is_dir() and not p.name.startswith("__")}
    stanzas = set(yaml.safe_load((ROOT / "helm/values.yaml").read_text())["services"])
    assert packages == folders == stanzas


def test_every_contract_lies_where_its_package_says():
    for proto in (ROOT / "protos").rglob("*.proto"):
        package = re.search(r"^package ([\w.]+);", proto.read_text(), re.M).group(1)
        assert proto.parent == ROOT / "protos" / package.replace(".", "/")


def test_every_file_that_looks_like_a_test_is_collected():
    """pytest collects `test_*.py` under mesh/, services/ and tests/; a `foo_test.py` would be forgotten in silence."""
    looks = [p for p in PYTHON if re.match(r"tests?_|.*_tests?\.py$", p.name) and p.name != "testing.py"]
    forgotten = [
        p
        for p in looks
        if not p.name.startswith("test_") or p.relative_to(ROOT).parts[0] not in {"mesh", "services", "tests"}
    ]
    assert not forgotten
    for p in PYTHON:
        defines = any(
            n.name.startswith("test_")
            for n in ast.parse(p.read_text()).body
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
        )
        assert not defines or p in looks, f"{relative(p)} defines tests but is not collected"


def test_no_port_number_stands_in_the_repository_but_the_edges_default():
    """Everything else binds port 0 or a socket, so that two clones run side by side."""
    found = [
        f"{relative(p)}:{number}: {line.strip()}"
        for p in WRITTEN
        if p.suffix in (".py", ".yaml", ".lua") and "tests" not in p.parts and p.name != "golden"
        for number, line in enumerate(p.read_text().splitlines(), 1)
        if re.search(r"(127\.0\.0\.1|localhost|0\.0\.0\.0|\[::1?\]):[1-9]\d+|\bport(_value)?\"?[:=] ?[1-9]\d+", line)
        and "MESH_PORT" not in line
    ]
    assert [line for line in found if not re.search(r"\b8080\b", line)] == []


@pytest.mark.parametrize("path", [p for p in WRITTEN if p.suffix == ".md"], ids=relative)
def test_every_link_in_the_docs_resolves(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not re.match(r"[a-z]+://|mailto:", target):
            assert (path.parent / target).exists(), target


def test_nothing_that_is_committed_is_large_secret_or_of_one_machine():
    for path in FILES:
        assert path.stat().st_size <= 5 * 1024 * 1024, relative(path)
    assert not [p for p in FILES if p.name == "uv.lock" or p.suffix in (".key", ".pem")]
    for lock in [p for p in FILES if p.name in ("requirements.lock", "requirements-dev.lock", "package-lock.json")]:
        assert not re.search(r'"resolved": *"http|--(extra-)?index-url|--find-links|@ https?://', lock.read_text()), (
            relative(lock)
        )


# What the runtime does for a service, by the name that its code would have, and where it is.
PLUMBING = {
    "grpc": "errors.ServiceError",
    "basicConfig": "run",
    "dictConfig": "run",
    "create_async_engine": "database",
    "begin_nested": "Database.transaction",
    "to_thread": "blocking",
    "run_in_executor": "blocking",
    "ThreadPoolExecutor": "blocking",
    "ProcessPoolExecutor": "computing",
    "LRUCache": "cache.Cache",
    "TTLCache": "cache.Cache",
    "add_signal_handler": "serve",
}


@pytest.mark.parametrize("path", [p for p in PYTHON if "services" in p.parts and "tests" not in p.parts], ids=relative)
def test_a_service_leaves_its_plumbing_to_the_runtime(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    used = {n.attr for n in nodes if isinstance(n, ast.Attribute)} | {n.id for n in nodes if isinstance(n, ast.Name)}
    used |= {a.name for n in nodes if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    assert not {name: f"mesh.runtime has `{PLUMBING[name]}`" for name in used & set(PLUMBING)}
