"""What may be believed of a food, what may be changed, what a word may stand for."""

import math

import pytest
from nourish.food.v1.food_pb2 import Food, Portion
from nourish.type.v1.nutrients_pb2 import Nutrients

from services.food import domain
from services.food.search import Neighbour, Term, lexemes, matching, term


def figures(**values):
    return [values.get(name) for name in domain.NUTRIENTS]


def test_nutrients_are_stored_in_the_order_of_the_contract():
    assert len(domain.NUTRIENTS) == 39
    assert domain.NUTRIENTS[domain.ENERGY] == "energy_kcal"
    assert domain.NUTRIENTS[domain.PROTEIN] == "protein_g"
    assert domain.NUTRIENTS[domain.SODIUM] == "sodium_mg"
    assert domain.NUTRIENTS[-1] == "selenium_ug"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"energy_kcal": 40, "carbohydrate_g": 9.3, "fat_g": 0.1, "protein_g": 1.1}, None),
        ({"energy_kcal": 884, "fat_g": 100, "carbohydrate_g": 0, "protein_g": 0}, None),
        ({"sodium_mg": 38_758}, None),
        ({}, None),
        ({"fat_g": -0.1}, "negative"),
        ({"fat_g": 106}, "over 100 g in 100 g"),
        ({"carbohydrate_g": 60, "fat_g": 30, "protein_g": 20}, "over 100 g in 100 g"),
        ({"potassium_mg": 200_000}, "over 100 g in 100 g"),
        ({"sodium_mg": 60_000}, "beyond any food"),
        ({"energy_kcal": 951}, "beyond any food"),
        ({"folate_ug": 19_000_000}, "beyond any food"),
        ({"folate_ug": math.nan}, "beyond any food"),
        ({"folate_ug": math.inf}, "beyond any food"),
        ({"carbohydrate_g": 10, "sugars_g": 16}, "part larger than the whole"),
        ({"fat_g": 1, "saturated_fat_g": 7}, "part larger than the whole"),
        ({"energy_kcal": 801, "carbohydrate_g": 100, "fat_g": 0, "protein_g": 0}, "energy over 2x off Atwater"),
        ({"energy_kcal": 199, "carbohydrate_g": 100, "fat_g": 0, "protein_g": 0}, "energy over 2x off Atwater"),
        ({"energy_kcal": 201, "carbohydrate_g": 100, "fat_g": 0, "protein_g": 0}, None),
        # Fibre that a label counts as nothing, and rounding of what is little anyway.
        ({"energy_kcal": 160, "carbohydrate_g": 80, "fiber_g": 75, "fat_g": 0, "protein_g": 0}, None),
        ({"energy_kcal": 0, "carbohydrate_g": 4, "fat_g": 0, "protein_g": 0}, None),
        # Not checkable.
        ({"energy_kcal": 801, "carbohydrate_g": 10, "protein_g": 0}, None),
    ],
)
def test_figures_of_a_label_that_cannot_be_true_are_named(values, reason):
    assert domain.fault(figures(**values), labelled=True) == reason


def test_the_energy_of_usda_s_own_figures_is_believed_for_alcohol_is_in_no_column():
    vodka = figures(energy_kcal=231, carbohydrate_g=0, fat_g=0, protein_g=0)
    assert domain.fault(vodka, labelled=False) is None
    assert domain.fault(vodka, labelled=True) == "energy over 2x off Atwater"


def test_a_plain_food_is_plainer_than_what_is_made_of_it():
    known = figures(energy_kcal=40)
    plain = domain.plainness(2, "Onions, raw", "Vegetables", known)
    for name, category in [
        ("Onion rings, breaded, frozen", "Vegetables"),
        ("Onions, dehydrated flakes", "Vegetables"),
        ("Onion raw BRANDNAME", "Vegetables"),
        ("Onions, raw", "Baby Foods"),
    ]:
        assert domain.plainness(2, name, category, known) < plain
    assert domain.plainness(2, "Onions, raw", "Vegetables", figures()) < plain


def test_an_id_of_a_generic_food_stays_when_its_figures_change_and_a_branded_one_does_not():
    assert domain.usda_id(2, "Onions, raw", "{1}") == domain.usda_id(2, "Onions, raw", "{2}")
    assert domain.usda_id(4, "SOUP", "{1}") != domain.usda_id(4, "SOUP", "{2}")
    assert domain.usda_id(1, "Onions, raw", "{1}") != domain.usda_id(2, "Onions, raw", "{1}")


def test_ids_are_the_same_on_every_install():
    assert domain.usda_id(2, "Onions, raw", "") == "usda-88283b24b37f6c65"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figures_that_are_no_numbers_are_refused_by_name(value):
    food = Food(display_name="x", nutrients=Nutrients(fat_g=value), portions=[Portion(description="cup", grams=value)])
    with pytest.raises(domain.InvalidFieldsError) as caught:
        domain.content_of(food)
    assert [field for field, _ in caught.value.found] == ["food.nutrients.fat_g", "food.portions[0].grams"]


def test_a_name_of_white_space_is_no_name():
    with pytest.raises(domain.InvalidFieldsError):
        domain.content_of(Food(display_name=" \t "))


def near(typed, *, generic=0, total=0, neighbours=()):
    found = [Neighbour(word, word, *counts) for word, *counts in neighbours]
    return term(typed, typed, generic=generic, total=total, neighbours=found)


def test_a_word_of_the_generic_foods_stands_for_itself():
    assert near("onion", generic=9, total=900, neighbours=[("union", 1, 99_999)]) == Term("onion", known=True)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("brocoli", "broccoli"), ("brocolli", "broccoli"), ("oinon", "onion"), ("zuchini", "zucchini"), ("egsg", "eggs")],
)
def test_a_word_with_typing_errors_stands_for_its_neighbour(typed, meant):
    found = near(typed, neighbours=[(meant, 5, 500), ("something", 5, 500)])
    assert found.spellings == (meant,)
    assert 0 < found.closeness < 1


def test_errors_are_counted_in_the_word_and_its_stem_is_looked_for():
    found = term("choclate", "choclat", generic=0, total=0, neighbours=[Neighbour("chocolate", "chocol", 5, 500)])
    assert found.spellings == ("chocol",)


def test_the_closest_spelling_wins_and_a_short_word_or_number_has_none():
    assert near("brocoli", neighbours=[("brocol", 9, 9), ("broccali", 9, 9)]).spellings == ("brocol",)
    assert near("oat", neighbours=[("boat", 9, 99)]).spellings == ()
    assert near("2000", neighbours=[("200", 9, 99)]).spellings == ()


def test_an_error_that_labels_repeat_still_stands_for_the_word():
    assert near("mozarella", total=5, neighbours=[("mozzarella", 17, 867)]).spellings == ("mozzarella",)
    assert near("craft", total=304, neighbours=[("kraft", 6, 47)]).spellings == ()


def test_quotes_and_backslashes_in_a_word_stay_in_the_word():
    assert lexemes(Term("o'\\x", known=True), "A") == "('o''\\\\x':A)"
    both = [Term("a", known=True), Term("b", known=False, spellings=("c",))]
    assert matching(both) == "('a') & ('b':* | 'c')"
    assert matching(both, any_of=True) == "('a') | ('b':* | 'c')"
