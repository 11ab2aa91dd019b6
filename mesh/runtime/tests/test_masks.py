"""Update masks as AIP-134 and AIP-161 have them."""

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.type.date_pb2 import Date
from nourish.food.v1.food_pb2 import Food, Portion, Source
from nourish.profile.v1.profile_pb2 import Goal, Profile
from nourish.type.v1.nutrients_pb2 import Nutrients

from mesh.runtime import masks
from mesh.runtime.errors import ServiceError

FOOD = Food(
    name="foods/own-1",
    display_name="Stew",
    category="Dinners",
    source=Source.SOURCE_USER,
    nutrients=Nutrients(energy_kcal=100, fat_g=5),
    portions=[Portion(description="1 bowl", grams=300)],
    etag="e",
)
PROFILE = Profile(
    name="profiles/p",
    etag="7",
    display_name="Me",
    weight_kg=70,
    birth_date=Date(year=1990, month=1, day=2),
    goals=[Goal.GOAL_LOSE_WEIGHT],
)


def merged(stored, sent, *paths):
    return masks.merged(stored, sent, FieldMask(paths=paths))


def with_changes(stored, **changes):
    expected = type(stored)()
    expected.CopyFrom(stored)
    for name, value in changes.items():
        expected.ClearField(name)
        if value is not None:
            expected.MergeFrom(type(stored)(**{name: value}))
    return expected


def test_without_a_mask_the_fields_that_are_set_change():
    sent = Profile(weight_kg=0, goals=[Goal.GOAL_BUILD_MUSCLE])  # a zero that is set, for the field is optional
    assert merged(PROFILE, sent) == with_changes(PROFILE, weight_kg=0, goals=[Goal.GOAL_BUILD_MUSCLE])


def test_a_field_in_the_mask_that_is_not_set_is_cleared():
    changed = merged(PROFILE, Profile(display_name="no"), "weight_kg", "goals", "birth_date")
    assert changed == with_changes(PROFILE, weight_kg=None, goals=None, birth_date=None)
    assert merged(FOOD, Food(), "category", "portions") == with_changes(FOOD, category=None, portions=None)


def test_a_star_replaces_all_that_a_caller_may_set():
    expected = Food(name=FOOD.name, source=FOOD.source, etag=FOOD.etag, display_name="Soup")
    assert merged(FOOD, Food(display_name="Soup"), "*") == expected


def test_one_field_of_a_message_changes_alone_or_goes():
    sent = Food(nutrients=Nutrients(fat_g=7, protein_g=9))
    changed = merged(FOOD, sent, "nutrients.fat_g", "nutrients.energy_kcal")
    assert changed == with_changes(FOOD, nutrients=Nutrients(fat_g=7))


def test_a_message_named_whole_and_in_part_is_replaced():
    sent = Food(nutrients=Nutrients(protein_g=9))
    assert merged(FOOD, sent, "nutrients.fat_g", "nutrients") == with_changes(FOOD, nutrients=sent.nutrients)


def test_a_part_of_a_message_that_neither_has_does_not_make_one():
    assert not merged(Profile(), Profile(), "birth_date.year").HasField("birth_date")
    assert merged(Profile(), Profile(birth_date=Date(year=1)), "birth_date.year").birth_date == Date(year=1)


@pytest.mark.parametrize("paths", [[], ["*"], ["name", "etag", "create_time", "source", "name.x"[:4]]])
def test_what_only_the_service_sets_stays_named_or_not(paths):
    forged = Food(name="foods/x", etag="99", create_time={"seconds": 1}, source=Source.SOURCE_BRANDED)
    changed = merged(FOOD, forged, *paths)
    assert (changed.name, changed.etag, changed.source) == (FOOD.name, FOOD.etag, FOOD.source)
    assert not changed.HasField("create_time")


@pytest.mark.parametrize("path", ["colour", "nutrients.colour", "portions.grams", "category.x", "", "nutrients.", ".x"])
def test_a_path_that_is_no_field_is_a_violation_that_names_it(path):
    with pytest.raises(ServiceError) as refused:
        merged(FOOD, Food(display_name="Soup"), "display_name", path)
    ((field, problem),) = refused.value.violations
    assert field == "update_mask"
    assert repr(path) in problem


def test_every_bad_path_is_named_and_a_star_stands_alone():
    with pytest.raises(ServiceError) as refused:
        merged(FOOD, Food(), "colour", "size")
    assert len(refused.value.violations) == 2
    with pytest.raises(ServiceError, match="alone"):
        merged(FOOD, Food(), "*", "category")


def test_neither_side_is_changed_by_a_merge():
    stored, sent = with_changes(FOOD), Food(nutrients=Nutrients(fat_g=1), portions=[Portion(description="x", grams=1)])
    changed = merged(stored, sent)
    changed.nutrients.fat_g = 99
    changed.portions[0].grams = 99
    assert (stored, sent.nutrients.fat_g, sent.portions[0].grams) == (FOOD, 1, 1)
