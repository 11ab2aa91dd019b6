"""Paths of google.api.http: what they match, and which of them one request could match both of."""

from __future__ import annotations

import re

import pytest

from mesh.path_template import PathTemplate

MATCHES = [
    ("/api/v1/foods", ["/api/v1/foods"], ["/api/v1/foods/", "/api/v1/foods/x", "/api/v1/foods:search", "/api/v1/food"]),
    (
        "/api/v1/{name=foods/*}",
        ["/api/v1/foods/x", "/api/v1/foods/a%2Fb", "/api/v1/foods/1.5"],
        ["/api/v1/foods", "/api/v1/foods/", "/api/v1/foods/x/y", "/api/v1/foods/x:copy", "/api/v1/foods:search"],
    ),
    (
        "/api/v1/foods:search",
        ["/api/v1/foods:search"],
        ["/api/v1/foods", "/api/v1/foods/search", "/api/v1/foods:searchx"],
    ),
    ("/v1/{id}", ["/v1/x"], ["/v1/", "/v1", "/v1/x/y", "/v1/x:y"]),
    ("/v1/{a.b=x/*}/of/{c}", ["/v1/x/1/of/2"], ["/v1/x/1/of", "/v1/x/of/2"]),
    ("/v1/{name=a/*/b/**}", ["/v1/a/1/b", "/v1/a/1/b/2", "/v1/a/1/b/2/3"], ["/v1/a/b", "/v1/a/1/c", "/v1/a/1/b/2:x"]),
    ("/v1/{name=foods/*}:copy", ["/v1/foods/x:copy"], ["/v1/foods/x", "/v1/foods:copy", "/v1/foods/x:copying"]),
    ("/v1.1/a", ["/v1.1/a"], ["/v1x1/a"]),
]


@pytest.mark.parametrize(("template", "matching", "others"), MATCHES)
def test_a_template_matches_whole_paths_and_no_others(template: str, matching: list[str], others: list[str]) -> None:
    regex = re.compile(PathTemplate.parse(template).regex)
    assert [path for path in matching if not regex.fullmatch(path)] == []
    assert [path for path in others if regex.fullmatch(path)] == []


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("api/v1", "begin with '/'"),
        ("", "begin with '/'"),
        ("/v1/", "'' is neither"),
        ("/v1//x", "'' is neither"),
        ("/v1/{name", "'{name' is neither"),
        ("/v1/{name=a/{b}}", "neither"),
        ("/v1/{Name}", "'Name' is not a field path"),
        ("/v1/{}", "'' is not a field path"),
        ("/v1/{id}/{id}", "a field twice"),
        ("/v1/**/x", r"'\*\*' may only come last"),
        ("/v1/***", "neither"),
        ("/v1/a*", "neither"),
        ("/v1/x:a:b", "'a:b' is neither"),
    ],
)
def test_what_is_no_template_is_refused(template: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        PathTemplate.parse(template)


def test_variables_are_the_field_paths() -> None:
    assert PathTemplate.parse("/v1/{food.name=foods/*}/of/{id}:copy").variables == ("food.name", "id")


@pytest.mark.parametrize(
    ("left", "right", "overlap"),
    [
        ("/v1/foods/*", "/v1/{name=foods/*}", True),
        ("/v1/foods/*", "/v1/foods/mine", True),
        ("/v1/*/x", "/v1/foods/*", True),
        ("/v1/**", "/v1", True),
        ("/v1/**", "/v1/a/b", True),
        ("/v1/a/**", "/v1/*/b/c", True),
        ("/v1/a/**", "/v1/**", True),
        ("/v1/foods/*", "/v1/foods", False),
        ("/v1/foods:search", "/v1/foods", False),
        ("/v1/foods:search", "/v1/*", False),
        ("/v1/foods/*:copy", "/v1/foods/*", False),
        ("/v1/foods/*:copy", "/v1/foods/x:copy", True),
        ("/v1/a/**", "/v1/b/**", False),
        ("/v1/a/*", "/v1/a/*/b", False),
    ],
)
def test_templates_overlap_when_one_path_matches_both(left: str, right: str, overlap: bool) -> None:
    ours, theirs = PathTemplate.parse(left), PathTemplate.parse(right)
    assert ours.overlaps(theirs) is overlap
    assert theirs.overlaps(ours) is overlap
