"""Choosing a food: what decides, and when it is not sure."""

import pytest
from nourish.food.v1 import food_pb2

from services.nutrition import matching, tables
from services.nutrition.words import tokens


def food(name: str, source: "food_pb2.Source.ValueType" = food_pb2.SOURCE_SR_LEGACY) -> food_pb2.Food:
    """A food with some energy."""
    made = food_pb2.Food(name=f"foods/{abs(hash((name, source)))}", display_name=name, source=source)
    made.nutrients.energy_kcal = 100
    return made


def best(name: str, *candidates: str, state: str = "") -> matching.Match:
    """The choice among foods of those names."""
    match = matching.choose(matching.wanted(name, state), map(food, candidates))
    assert match is not None
    return match


@pytest.mark.parametrize(
    ("name", "state", "right", "others"),
    [
        ("onions", "", "Onions, raw", ["Onion rings, breaded", "Soup, onion, dry mix", "Onions, cooked, boiled"]),
        ("garlic", "", "Garlic, raw", ["Garlic bread, frozen", "Spices, garlic powder"]),
        ("rutabaga", "", "Rutabagas, raw", ["Babyfood, rutabaga", "Rutabagas, cooked, boiled", "Rutabaga chips"]),
        ("rutabaga", "cooked", "Rutabagas, cooked, boiled", ["Rutabagas, raw"]),
        ("guava", "", "Guavas, common, raw", ["Guava sauce, cooked", "Guava nectar, canned", "BRAND guava drink"]),
        ("red onion", "", "Onions, red, raw", ["Onions, raw", "Onions, white, raw"]),
        ("rice", "cooked", "Rice, white, cooked, no added fat", ["Rice, white, long grain, unenriched, raw"]),
        ("coconut milk", "", "Coconut milk, used in cooking", ["Milk, whole", "Coconut water"]),
        ("vanilla yogurt", "", "Yogurt, vanilla, low fat.", ["Yogurt, plain, whole milk", "Vanilla extract"]),
    ],
)
def test_the_right_food_wins_in_any_order(name: str, state: str, right: str, others: list[str]) -> None:
    """Head noun, state and plainness decide, not the order of the candidates."""
    assert best(name, right, *others, state=state).food.display_name == right
    assert best(name, *others, right, state=state).food.display_name == right


def test_a_food_that_is_only_named_in_a_dish_is_not_used() -> None:
    """Onion rings and onion soup are no onions, however alone they stand."""
    assert best("onions", "Onion rings, breaded").confidence < matching.USED.value
    assert best("onions", "Bread, onion").confidence < matching.USED.value


@pytest.mark.parametrize("name", ["cauliflower rice", "coconut sugar", "lime leaves"])
def test_a_word_that_makes_another_food_of_it_forbids_the_match(name: str) -> None:
    """Cauliflower rice is no rice, and a lime leaf no lime."""
    candidates = ("Rice, white, long grain, unenriched, raw", "Sugars, granulated", "Limes, raw")
    assert best(name, *candidates).confidence < matching.USED.value


@pytest.mark.parametrize("name", ["vegan mayonnaise", "smoky paprika", "brocoli", "chicken", "baking powder"])
def test_what_may_be_something_else_is_weak(name: str) -> None:
    """A word that nothing answers, another spelling, a name of many foods, and a stand-in are used, and said to be."""
    wordings = [alias.wording for alias in tables.aliases().values()]
    match = best(name, *wordings)
    assert matching.USED.value <= match.confidence < matching.SURE
    assert match.doubts


def test_a_food_without_energy_is_not_taken_when_another_has_it() -> None:
    """USDA's newer rows often lack energy: the totals would lack it too."""
    empty = food_pb2.Food(name="foods/a", display_name="Butter, without salt", source=food_pb2.SOURCE_FOUNDATION)
    match = matching.choose(matching.wanted("butter"), [empty, food("Butter, salted")])
    assert match is not None
    assert match.food.display_name == "Butter, salted"


def test_generic_before_branded_and_own_food_before_all() -> None:
    """Of one name, the user's own food comes first, a brand last."""
    asked = matching.wanted("zwieback")
    sources = food_pb2.SOURCE_BRANDED, food_pb2.SOURCE_SURVEY, food_pb2.SOURCE_USER
    foods = [food("Zwieback", source) for source in sources]
    chosen = [matching.choose(asked, foods[:count]) for count in (1, 2, 3)]
    assert [match.food.source for match in chosen if match] == list(sources)


def test_queries_name_the_food_as_usda_does() -> None:
    """A known name asks by USDA's wording, with what stands before it; an unknown one by itself, noise left out."""
    assert matching.wanted("scallions").query == "onion green raw"
    assert matching.wanted("smoky scallions").query == "smoky onion green raw"
    assert matching.wanted("fresh candied rutabagas").query == "candied rutabaga"
    assert len(matching.wanted("rutabaga " * 60).query) <= 200


def test_every_wording_is_a_row_of_usda_with_energy(usda_foods: list[food_pb2.Food]) -> None:
    """`foods.csv` promises no food that does not exist."""
    have = {tokens(f.display_name) for f in usda_foods if f.nutrients.HasField("energy_kcal")}
    missing = {alias.wording for alias in tables.aliases().values() if tokens(alias.wording) not in have}
    assert not missing


def test_every_measured_food_can_be_asked_for() -> None:
    """A row of `measures.csv` that no name leads to is a misspelling."""
    kinds = {tokens(alias.kind) for alias in tables.aliases().values()} | {words for words, _ in tables.aliases()}
    general = {("flour",), ("wine",), ("sauce",), ("juice",), ("nut",), ("berry",)}
    assert set(tables.measures()) - kinds - general == set()
