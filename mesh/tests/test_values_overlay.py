"""How several files of a user are merged before they are laid over the chart's own, as `helm -f a -f b` merges them.

Helm's MergeMaps: maps merge key by key, everything else is replaced, and null is a value like any other.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.values import ValuesFile, dump, merge, read

_values = st.recursive(
    st.none() | st.integers(0, 3) | st.sampled_from(["x", "yes", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
_maps = st.dictionaries(st.sampled_from("abc"), _values, max_size=3)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    return merge([ValuesFile(f"{n}.yaml", json.dumps(layer)) for n, layer in enumerate(layers)])


@quick
@given(_maps)
def test_a_users_file_over_nothing_is_that_file(layer: dict[str, Any]) -> None:
    assert merged({}, layer) == layer


@quick
@given(_maps, _maps)
def test_the_last_file_holds_in_all_that_it_says(lower: dict[str, Any], upper: dict[str, Any]) -> None:
    def says(result: Any, layer: Any) -> bool:
        if isinstance(result, dict) and isinstance(layer, dict):
            return all(key in result and says(result[key], value) for key, value in layer.items())
        return bool(result == layer)

    assert says(merged({}, lower, upper), upper)


@quick
@given(_maps, _maps, _maps)
def test_files_are_merged_one_after_the_other(one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]) -> None:
    assert merged({}, one, two, three) == merged({}, merged({}, one, two), three)


@quick
@given(_maps, _maps)
def test_merging_changes_nothing_when_repeated(own: dict[str, Any], user: dict[str, Any]) -> None:
    assert merged(own, user, user) == merged(own, user)


def test_a_null_that_a_later_file_takes_back_removes_nothing() -> None:
    """Helm lays the merged files over the chart once, at the end: the chart's `b` is still there to be kept."""
    assert merged({"a": {"b": 1}}, {"a": None}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert merged({"a": {"b": 1}}, {"a": None}) == {}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.text("ynof1e0x_.:-~< =é", max_size=5), st.text("ynoft1e0x_.:-~< ='#é", max_size=6), max_size=3)
)
def test_what_is_dumped_reads_back_as_it_was(values: dict[str, str]) -> None:
    assert merge([ValuesFile("in-force.yaml", dump(values))]) == values


def test_a_text_that_looks_like_a_number_keeps_its_quotation_marks() -> None:
    assert dump({"tag": "12e5", "y": 1}) == "tag: '12e5'\n'y': 1\n"


def test_lists_are_replaced_whole() -> None:
    assert merged({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}


def test_services_keep_the_order_of_the_charts_own_file_then_of_the_users() -> None:
    assert list(merged({"c": 1, "a": 1}, {"b": 2, "a": 2})) == ["c", "a", "b"]


def test_an_index_sets_one_item_of_a_users_list_but_replaces_the_charts(tmp_path: Any) -> None:
    """Helm applies assignments to the user's merged files, before the chart's own values come in."""
    own, user = tmp_path / "values.yaml", tmp_path / "user.yaml"
    own.write_text("a: [own, own]\nb: [own, own]\n")
    user.write_text("a: [user, user]\n")
    assert merge(read([own, user], ["a[1]=set", "b[0]=set"])) == {"a": ["user", "set"], "b": ["set"]}


def test_an_assignment_sees_the_ones_before_it(tmp_path: Any) -> None:
    own = tmp_path / "values.yaml"
    own.write_text("{}")
    assert merge(read([own], ["a={x,y}", "a[0]=z", "b.c=1", "b.d=2"])) == {"a": ["z", "y"], "b": {"c": 1, "d": 2}}
