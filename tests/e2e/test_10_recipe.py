"""A newcomer analyses a recipe over REST; the answer crossed the edge, two sidecars and two services."""

import httpx
import pytest
import yaml

from tests.e2e.harness import ROOT

RECIPES = yaml.safe_load((ROOT / "services/nutrition/tests/worked_recipes.yaml").read_text())["recipes"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r["name"])
def test_energy_is_within_15_percent_of_the_sum_worked_by_hand(mesh, recipe):
    by_hand = sum(line["grams"] * line["kcal_per_100g"] / 100 for line in recipe["lines"]) / recipe["servings"]
    body = {"lines": [line["text"] for line in recipe["lines"]], "servings": recipe["servings"]}
    answer = httpx.post(f"{mesh.url}/api/v1/nutrition:analyze", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["perServing"]["energyKcal"] == pytest.approx(by_hand, rel=0.15)


def test_a_line_that_cannot_be_used_is_said_and_left_out(mesh):
    body = {"lines": ["100 g granulated sugar", "3 cups of unobtainium dust"]}
    answer = httpx.post(f"{mesh.url}/api/v1/nutrition:analyze", json=body, timeout=30).json()
    used = {line["line"]: line["used"] for line in answer["lines"]}
    assert used == {"100 g granulated sugar": True, "3 cups of unobtainium dust": False}
    assert answer["lines"][1]["issues"][0]["kind"] == "ISSUE_KIND_NO_MATCH"
    assert answer["total"]["energyKcal"] == answer["lines"][0]["nutrients"]["energyKcal"]


def test_a_typing_error_finds_the_food_and_generic_foods_come_first(mesh):
    answer = httpx.get(f"{mesh.url}/api/v1/foods:search", params={"query": "brocoli"}).json()
    first = answer["results"][0]["food"]
    assert "broccoli" in first["displayName"].lower()
    assert first["source"] != "SOURCE_BRANDED"


def test_a_food_is_read_back_by_its_name_and_pages_do_not_overlap(mesh):
    first = httpx.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 3}).json()
    token = first["nextPageToken"]
    second = httpx.get(f"{mesh.url}/api/v1/foods", params={"pageSize": 3, "pageToken": token}).json()
    names = [food["name"] for food in first["foods"] + second["foods"]]
    assert len(set(names)) == 6
    assert httpx.get(f"{mesh.url}/api/v1/{names[0]}").json() == first["foods"][0]


def test_health_shows_every_service(mesh):
    answer = httpx.get(f"{mesh.url}/health").json()
    assert answer["state"] == "HEALTH_STATE_SERVING"
    assert {name: s["state"] for name, s in answer["services"].items()} == dict.fromkeys(
        ("food", "nutrition", "profile"), "HEALTH_STATE_SERVING"
    )
