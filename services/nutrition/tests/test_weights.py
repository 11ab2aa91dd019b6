"""Amounts to grams: which source comes first, and what is said of it."""

import pytest
from nourish.food.v1 import food_pb2
from nourish.nutrition.v1 import nutrition_pb2 as pb

from services.nutrition import matching, parsing, tables
from services.nutrition.weights import Weight, weigh

pytestmark = pytest.mark.usefixtures("parser")


def weight(text: str, name: str = "Food", category: str = "", **portions: float) -> Weight | None:
    """The weight of a line for a food with those portions."""
    line = parsing.parse(text)
    food = food_pb2.Food(display_name=name, category=category)
    for description, grams in portions.items():
        food.portions.add(description=description.replace("_", " "), grams=grams)
    return weigh(line, matching.understand(line), food)


@pytest.mark.parametrize(
    ("text", "grams", "basis"),
    [
        ("300 g onions", 300, pb.WEIGHT_BASIS_STATED),
        ("2 cups chopped onions", 320, pb.WEIGHT_BASIS_DENSITY),
        ("2 cups sliced onions", 230, pb.WEIGHT_BASIS_DENSITY),
        ("8 tbsp chopped onions", 80, pb.WEIGHT_BASIS_DENSITY),
        ("1 large onion", 150, pb.WEIGHT_BASIS_PIECE),
        ("3 cloves garlic", 9, pb.WEIGHT_BASIS_PIECE),
        ("10 basil leaves", 5, pb.WEIGHT_BASIS_PIECE),
        ("1 cup cooked rice", 158, pb.WEIGHT_BASIS_DENSITY),
        ("1 cup rice", 185, pb.WEIGHT_BASIS_DENSITY),
        ("1 pint milk", 488, pb.WEIGHT_BASIS_DENSITY),
        ("2 inch piece ginger", 30, pb.WEIGHT_BASIS_PIECE),
    ],
)
def test_weighs_by_what_usda_measured(text: str, grams: float, basis: "pb.WeightBasis.ValueType") -> None:
    """The form that the line names chooses among the measures of a food."""
    found = weight(text)
    assert found is not None
    assert (round(found.grams, 1), found.basis) == (pytest.approx(grams, rel=0.01), basis)


def test_a_portion_of_the_matched_food_comes_before_our_measures() -> None:
    """In the unit asked for, or scaled to it; a piece by its own name."""
    cup = weight("1 tbsp chopped onions", cup=168)
    piece = weight("2 onions", name="Onions, yellow, raw", Onion=143)
    assert cup is not None
    assert piece is not None
    assert (cup.basis, round(cup.grams, 2)) == (pb.WEIGHT_BASIS_PORTION, 10.5)
    assert (piece.basis, piece.grams) == (pb.WEIGHT_BASIS_PORTION, 286)


def test_a_portion_that_cannot_be_is_set_aside() -> None:
    """FoodData Central says that a cup of ricotta is 323 g; the standard reference says 246 g."""
    found = weight("1 cup ricotta", name="Cheese, ricotta, whole milk", cup=323)
    assert found is not None
    assert (found.basis, round(found.grams)) == (pb.WEIGHT_BASIS_DENSITY, 246)


@pytest.mark.parametrize(
    "text",
    [
        "1 onion",
        "a pinch of salt",
        "1 can tomatoes",
        "1 bunch parsley",
        "1 (15 oz) can chickpeas, drained",
        "1 small eggplant",
    ],
)
def test_estimates_say_so(text: str) -> None:
    """No size, vague measures, cans, bunches and drained cans are estimates."""
    found = weight(text)
    assert found is not None
    assert found.doubts


@pytest.mark.parametrize("text", ["1 tbsp olive oil", "3 cloves garlic", "2 large eggs", "1 lb beef", "1 cup flour"])
def test_exact_measures_are_no_estimates(text: str) -> None:
    """What USDA measured in just that measure."""
    found = weight(text)
    assert found is not None
    assert not found.doubts


def test_unknown_foods_weigh_as_their_category() -> None:
    """By volume, as an estimate; by the piece nothing is known."""
    found = weight("1 cup zorblax", category="Vegetables and Vegetable Products")
    assert found is not None
    assert found.grams == pytest.approx(130)
    assert found.doubts
    assert weight("2 zorblax", category="Vegetables and Vegetable Products") is None
    assert weight("1 cup zorblax", category="Something else") is None


def test_every_measure_is_cited_and_plausible() -> None:
    """Each says where it is from; volumes have a density between puffed cereal and syrup."""
    for food, rows in tables.measures().items():
        for row in rows:
            assert row.source.startswith(("USDA", "estimate")), food
            assert row.grams > 0
            if row.unit == "cup":
                assert 8 <= row.grams <= 350, (food, row)
