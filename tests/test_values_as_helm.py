"""`mesh.values` gives what Helm's own engine gives: the same scalars, overlays, assignments and refusals.

Helm's engine is called in-process. It takes one user file at a time; how several are merged among themselves is proved
in mesh/tests/test_values_overlay.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.values import CHART_VALUES, SCHEMA, ValuesError, ValuesFile, layers, load, merge, read, strvals

Render = Callable[[str, dict[str, Any]], dict[str, Any]]

quick = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture
def as_helm(tmp_path: Path) -> Render:
    """Gives `.Values` as a template sees them, for a chart's own values and a user's."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "all.yaml").write_text("{{ .Values | toJson }}")
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: all\nversion: 0.1.0\n")

    def render(own: str, user: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / "values.yaml").write_text(own)
        with helm_python.Chart.load(tmp_path) as chart:
            (manifest,) = chart.render(user).values()
        values: dict[str, Any] = json.loads(manifest or "{}")
        return values

    return render


def ours(own: str, user: dict[str, Any]) -> dict[str, Any]:
    return merge([ValuesFile("values.yaml", own), ValuesFile("user.yaml", json.dumps(user))])


@pytest.mark.parametrize(
    ("own", "user"),
    [
        ("a: 1", {"a": None}),
        ("a: {b: 1, c: 2}", {"a": {"b": None}}),
        ("a: {b: {c: 1}}", {"a": {"b": {"c": None}}}),
        ("a: {b: 1}", {"a": None}),
        ("{}", {"a": None}),
        ("b: 1", {"a": {"b": None}}),
        ("a: ~", {}),
        ("a: ~", {"a": None}),
        ("a: {b: ~}", {}),
        ("a: {b: ~}", {"a": {"b": None}}),
        ("a: {b: {c: ~, d: 1}}", {"a": {"b": {"d": None}}}),
        ("a: {b: 1}", {"a": 5}),
        ("a: {b: 1}", {"a": [1]}),
        ("a: 5", {"a": {"b": 1, "c": None}}),
        ("a: [1, 2]", {"a": [3]}),
        ("a: [1, ~]", {"a": [None], "b": [{"c": None}]}),
        ("a: {b: [{c: ~}]}", {}),
        ("a: {b: 1}", {"a": {}}),
        ("a: {b: 1}", {"b": {"a": 1}}),
    ],
)
def test_a_file_over_the_charts_own_values_gives_what_helm_gives(
    own: str, user: dict[str, Any], as_helm: Render
) -> None:
    assert ours(own, user) == as_helm(own, user)


_values = st.recursive(
    st.none() | st.integers(0, 3) | st.sampled_from(["x", "y"]) | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
_maps = st.dictionaries(st.sampled_from("abc"), _values, max_size=3)


@quick
@given(own=_maps, user=_maps)
def test_any_map_over_any_map_gives_what_helm_gives(own: Any, user: Any, as_helm: Render) -> None:
    assert ours(json.dumps(own), user) == as_helm(json.dumps(own), user)


@pytest.mark.parametrize(
    "scalar",
    [
        *(
            "yes",
            "n",
            "On",
            "OFF",
            "true",
            "tRue",
            "~",
            "Null",
            "nUll",
            "",
            "1",
            "+1",
            "-0",
            "012",
            "0o12",
            "0o8",
            "08",
        ),
        *(
            "0x1F",
            "-0x1f",
            "0b11",
            "1_000",
            "1__0",
            "_1",
            ".0_",
            "1:30",
            "190:20:30",
            "2024-01-01",
            "1e3",
            "1e",
            "1.5e+3",
            "5.",
        ),
        *(".5", "1.10", "0.1.0", "10.0", '"5"', "'yes'", '"\\u0041"', "!!str 5", '!!int "5"', "=", "<<", "0xg", "-012"),
        *(
            "1.5",
            "6.02E23",
            "1_0.5",
            "-.5",
            "[1, yes]",
            "{y: n, 1: 2, 1.5: 3, 0x10: 4}",
            "|\n  text\n",
            ">-\n  a\n  b\n",
        ),
    ],
)
def test_a_scalar_is_read_as_helm_reads_it(scalar: str) -> None:
    text = f"a: {scalar}"
    assert layers.parse("v.yaml", text).plain() == helm_python.values_from_yaml(text)


@quick
@given(st.text("0123456789abefnoxy+-._:~TN", min_size=1, max_size=6).filter(lambda s: not s.endswith(":")))
def test_a_plain_scalar_is_never_read_otherwise_than_helm_reads_it(scalar: str) -> None:
    text = f"a: {scalar}"
    try:
        expected = helm_python.values_from_yaml(text)
    except helm_python.HelmValuesError:
        return
    assert layers.parse("v.yaml", text).plain() == expected


@pytest.mark.parametrize(
    "text",
    [
        "base: &base {a: 1, b: 2}\nuse: {<<: *base, b: 3}\n",
        "one: &one {a: 1}\nuse:\n  <<: [*one, {a: 2, b: 3}]\n  b: 4\n",
        "a: &x [1, 2]\nb: *x\n",
        "",
        "# nothing but a comment\n",
    ],
)
def test_aliases_merge_keys_and_empty_files_are_read_as_helm_reads_them(text: str) -> None:
    assert layers.parse("v.yaml", text).plain() == helm_python.values_from_yaml(text)


@pytest.mark.parametrize(
    "expression",
    [
        *("a.b=c", "a=1,b=2", "a=null", "a=true,b=FALSE,c=nUll", "a=0,b=012,c=1.5,d=-3,e=1e3,f=+3,g=-0,h=0x10"),
        *(
            "a={x,y,1}",
            "a={}",
            "a={x,}",
            "a={1,null,true}",
            "a={x\\,z,y},b=1",
            "a={ x, y }",
            "a=x{y",
            "a=\\{x\\}",
            "a=",
        ),
        *("a\\.b=c", "a=x\\,y", "a\\=b=c", "a=x\\", "a=b=c", "a= b", " a=b", "a=b ,c=d", 'a="q"', "a=é", "", "a=b,"),
        *("a[0]=1", "a[2]=1", "a[0].b=1", "a[0][1]=q", "a[0]=1,a[1]=2", "a[1].b=1,a[0].b=2", "a[0]={x,y}", "a[0]=null"),
        *("a.b=1,a.c=2", "a=b,a=c", "a.b.c=null", "a=99999999999999999999", "a=9223372036854775807", "a]=1", "a b=c"),
    ],
)
def test_an_assignment_sets_what_helm_sets(expression: str) -> None:
    assert strvals.parse(expression, {}) == helm_python.parse_set_string(expression)


@pytest.mark.parametrize(
    "expression",
    [
        *("a", "a.b", "a,b=1", "a=b,c", "a.=b", "a={x", "a={x} ,b=1", "a={a}b", "a=[1,2]", ",", "a=1,a.b=2"),
        *("a[-1]=1", "a[x]=1", "a[]=1", "a[65537]=1", "a[0]b=1"),
    ],
)
def test_an_assignment_that_helm_refuses_is_refused(expression: str) -> None:
    with pytest.raises(helm_python.HelmError):
        helm_python.parse_set_string(expression)
    with pytest.raises(ValueError, match=r"."):
        strvals.parse(expression, {})


@settings(quick, max_examples=200)
@given(st.text("ab.=,{}[]01\\n", max_size=10))
def test_no_assignment_sets_anything_but_what_helm_sets(expression: str) -> None:
    """We refuse some that Helm guesses at (`.a=b` sets nothing there), but never give another answer."""
    try:
        overlay = strvals.parse(expression, {})
    except ValueError:
        return
    assert overlay == helm_python.parse_set_string(expression)


@pytest.mark.parametrize("assignment", ["services.food.canary.weight=50", "services.food.canary=null", "edge.port=9"])
def test_an_assignment_over_our_chart_gives_what_helm_gives(assignment: str, as_helm: Render) -> None:
    expected = as_helm(CHART_VALUES.read_text(), helm_python.parse_set_string(assignment))
    assert merge(read([CHART_VALUES], [assignment])) == expected


@pytest.fixture
def our_chart(tmp_path: Path) -> helm_python.Chart:
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: nourish\nversion: 0.1.0\n")
    for source in (CHART_VALUES, SCHEMA):
        (tmp_path / source.name).write_text(source.read_text())
    return helm_python.Chart.load(tmp_path)


@pytest.mark.parametrize(
    "assignment",
    [
        "services.food.replcas=2",
        "services.food.canary.weight=101",
        "services.food.canary.weight=ten",
        "services.food.calls=profile",
        "services.food.lang=rust",
        "services.edge.replicas=1",
        "services.Food.replicas=1",
        "services.food-canary.replicas=1",
        "image.tag=5",
        "database.address=nowhere",
        "namespace=UPPER",
        "edge.port=0",
        "services=null",
    ],
)
def test_what_the_schema_refuses_helm_refuses_too(assignment: str, our_chart: helm_python.Chart) -> None:
    with pytest.raises(helm_python.HelmError):
        our_chart.validate_schema(helm_python.parse_set_string(assignment))
    with pytest.raises(ValuesError) as refusal:
        load(read([CHART_VALUES], [assignment]))
    assert refusal.value.problems


def test_what_the_schema_accepts_helm_accepts_too(our_chart: helm_python.Chart) -> None:
    assignments = ["services.food.canary.weight=100", "database.address=db.example:5432", "services.coach.calls={food}"]
    for assignment in assignments:
        our_chart.validate_schema(helm_python.parse_set_string(assignment))
    assert "coach" in load(read([CHART_VALUES], assignments)).services
