"""One value of a values file is changed in its text, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.values import CHART_VALUES, edit

KEYS = ("services", "food", "canary", "weight")


@pytest.mark.parametrize(
    "text",
    [
        "services:\n  food:\n    canary: { replicas: 1, weight: WEIGHT } # 10 percent\n",
        "services: {food: {canary: {weight: WEIGHT, replicas: 1}}}",
        'services:\n    food:\n        canary:\n            "weight":   WEIGHT   # kept\n            replicas: 1\n',
        "# a\r\nservices:\r\n  food:\r\n    canary:\r\n      weight: WEIGHT\r\n      replicas: 1\r\n",
        "services:\n  food:\n    canary:\n      ? weight\n      : WEIGHT\n\n\n# end",
        "# Gewürz 10\nservices:\n  other: { canary: { weight: 10 } }\n  food: { canary: { weight: WEIGHT } }\n",
    ],
    ids=["flow", "one line", "wide", "CRLF", "explicit key", "namesake"],
)
def test_only_the_weight_changes(text: str) -> None:
    assert edit.changed("v.yaml", text.replace("WEIGHT", "10"), KEYS, 37) == text.replace("WEIGHT", "37")


def test_quotes_and_an_empty_value_become_a_number() -> None:
    quoted = "services: { food: { canary: { weight: '10' } } }"
    assert edit.changed("v.yaml", quoted, KEYS, 5) == quoted.replace("'10'", "5")
    empty = "services:\n  food:\n    canary:\n      weight: # soon\n      replicas: 1\n"
    assert "weight: 5" in edit.changed("v.yaml", empty, KEYS, 5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("services:\n  food: {}\n", "v.yaml: services.food.canary.weight is not written here: add `weight: 5`"),
        ("", "is not written here"),
        ("a: &c { weight: 1 }\nservices:\n  food: { canary: *c }\n", "v.yaml:1: .* is shared by an anchor"),
        ("a: &w 1\nservices:\n  food: { canary: { weight: *w } }\n", "v.yaml:1: .* is shared by an anchor"),
        ("a: &c { weight: 1 }\nservices:\n  food:\n    canary:\n      <<: *c\n", "is not written here"),
        ("services:\n  food:\n    canary:\n      weight: [1]\n", "v.yaml:4: .* is no number"),
        ("services:\n  food:\n    canary:\n      weight: |\n        1\n", "v.yaml:4: .* is no number"),
    ],
    ids=["missing", "empty", "shared map", "shared value", "merged", "list", "block"],
)
def test_what_cannot_be_changed_safely_is_said(text: str, sentence: str) -> None:
    with pytest.raises(edit.EditError, match=sentence):
        edit.changed("v.yaml", text, KEYS, 5)


def test_the_shipped_file_keeps_every_other_byte(tmp_path: Path) -> None:
    copy = tmp_path / "values.yaml"
    copy.write_bytes(CHART_VALUES.read_bytes())
    copy.chmod(0o640)
    (tmp_path / "link.yaml").symlink_to(copy)
    edit.write(tmp_path / "link.yaml", KEYS, 73)
    assert copy.read_bytes() == CHART_VALUES.read_bytes().replace(b"weight: 10 }", b"weight: 73 }", 1)
    assert copy.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
