"""How right the service is: a table of ordinary lines, and recipes worked by hand from the same USDA rows."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from nourish.nutrition.v1 import nutrition_pb2 as pb
from nourish.nutrition.v1.nutrition_pb2_grpc import NutritionServiceStub

HERE = Path(__file__).parent
LINES: list[tuple[str, str, float, float]] = yaml.safe_load((HERE / "lines.yaml").read_text(encoding="utf-8"))
RECIPES: list[dict[str, Any]] = yaml.safe_load((HERE / "worked_recipes.yaml").read_text(encoding="utf-8"))["recipes"]


async def analysed(nutrition: NutritionServiceStub, lines: list[str], servings: int = 1) -> Any:
    """The answer for some lines."""
    return await nutrition.AnalyzeIngredients(pb.AnalyzeIngredientsRequest(lines=lines, servings=servings))


def wrong(answer: pb.LineAnalysis, food: str, low: float, high: float) -> str:
    """What is wrong with an answer, empty if nothing is."""
    if answer.used and re.search(food, answer.food_display_name) and low - 0.5 <= answer.grams <= high + 0.5:
        return ""
    return f"{answer.line}: {answer.food_display_name!r} {answer.grams:.1f} g, wanted /{food}/ {low} to {high} g"


@pytest.mark.parametrize("backwards", [False, True], ids=["best_first", "worst_first"])
async def test_ordinary_lines_give_the_food_and_weight_a_dietitian_would(
    nutrition: NutritionServiceStub, fake_food: Any, backwards: bool
) -> None:
    """At least 95 of 100 lines, in whatever order the candidates come."""
    fake_food.backwards = backwards
    assert len(LINES) >= 60
    answers = (await analysed(nutrition, [line for line, *_ in LINES])).lines
    misses = [text for answer, (_, *right) in zip(answers, LINES, strict=True) if (text := wrong(answer, *right))]
    print(f"hit rate {1 - len(misses) / len(LINES):.1%} of {len(LINES)} lines", *misses, sep="\n  ")
    assert len(misses) <= 0.05 * len(LINES), "\n".join(misses)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: str(recipe["name"]))
async def test_a_recipe_has_the_energy_worked_out_by_hand(
    nutrition: NutritionServiceStub, recipe: dict[str, Any]
) -> None:
    """Energy a serving is within 5 % of the sum by hand (the goal allows 15), line by line the food is the same."""
    answer = await analysed(nutrition, [line["text"] for line in recipe["lines"]], recipe["servings"])
    assert [line.food_display_name for line in answer.lines] == [line["food"] for line in recipe["lines"]]
    assert answer.per_serving.energy_kcal == pytest.approx(recipe["energy_kcal_per_serving"], rel=0.05)
    print(recipe["name"], answer.per_serving.energy_kcal, recipe["energy_kcal_per_serving"])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: str(recipe["name"]))
def test_the_recipes_are_worked_from_usda_rows(recipe: dict[str, Any], usda_foods: list[Any]) -> None:
    """Each figure a hundred grams is that of a USDA row of that name, and the sums are right."""
    energies: dict[str, list[float]] = {}
    for food in usda_foods:
        energies.setdefault(food.display_name, []).append(food.nutrients.energy_kcal)
    for line in recipe["lines"]:
        assert any(abs(kcal - line["kcal_per_100g"]) < 0.06 for kcal in energies[line["food"]]), line["food"]
        assert line["kcal"] == pytest.approx(line["grams"] * line["kcal_per_100g"] / 100, abs=0.2)
    total = sum(line["kcal"] for line in recipe["lines"])
    assert total == pytest.approx(recipe["energy_kcal_total"], abs=0.2)
    assert total / recipe["servings"] == pytest.approx(recipe["energy_kcal_per_serving"], abs=0.2)
