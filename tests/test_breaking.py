"""A contract stays readable for who has it already: callers built before, and events that wait in a stream."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BUF = Path(sys.executable).with_name("buf")
DESCRIPTORS = "gen/descriptors.binpb"


def breaking(tree: Path, against: Path, scratch: Path) -> str:
    """What `buf breaking` says of the contracts of `tree`, by the rules of our buf.yaml."""
    image = scratch / "image.binpb"
    subprocess.run([BUF, "build", "--as-file-descriptor-set", "-o", image], cwd=tree, check=True)
    rules = json.dumps({"version": "v2", "breaking": yaml.safe_load((ROOT / "buf.yaml").read_text())["breaking"]})
    command = [BUF, "breaking", image, "--against", against, "--config", rules, "--against-config", rules]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (100 if done.stdout else 0), done.stderr
    return done.stdout


@pytest.fixture
def tree(tmp_path):
    """A copy of the contracts."""
    copy = tmp_path / "tree"
    for folder in ("protos", ".deps/protos"):
        shutil.copytree(ROOT / folder, copy / folder)
    shutil.copy(ROOT / "buf.yaml", copy)
    return copy


def test_the_contracts_break_nothing_that_main_has(tmp_path):
    for branch in ("origin/main", "main"):
        shown = subprocess.run(["git", "show", f"{branch}:{DESCRIPTORS}"], cwd=ROOT, capture_output=True)
        if shown.returncode == 0:
            (tmp_path / "main.binpb").write_bytes(shown.stdout)
            assert breaking(ROOT, tmp_path / "main.binpb", tmp_path) == ""
            return
    pytest.skip("there is no branch to compare with")


def test_a_change_that_makes_events_in_a_stream_unreadable_is_refused_and_a_new_field_is_not(tree, tmp_path):
    proto = tree / "protos/nourish/food/v1/food.proto"
    text = proto.read_text()
    field = "  int64 foods = 2 [(buf.validate.field).int64.gte = 0];"
    assert field in text
    proto.write_text(text.replace(field, f"{field}\n  // When.\n  string when = 3;"))
    assert breaking(tree, ROOT / DESCRIPTORS, tmp_path) == ""
    proto.write_text(text.replace(field, "  string foods = 2;"))
    assert "FoodsImported" in breaking(tree, ROOT / DESCRIPTORS, tmp_path)
