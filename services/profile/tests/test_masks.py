"""Update masks as AIP-134 has them."""

import pytest
from google.type.date_pb2 import Date
from nourish.profile.v1.profile_pb2 import Diet, Goal, Profile

from services.profile import masks

STORED = Profile(
    name="profiles/p",
    etag="7",
    display_name="Me",
    weight_kg=70,
    height_cm=170,
    birth_date=Date(year=1990, month=1, day=2),
    goals=[Goal.GOAL_LOSE_WEIGHT],
    allergies=["peanuts"],
)


def test_without_a_mask_the_fields_that_are_set_change():
    merged = masks.merge(STORED, Profile(weight_kg=71, allergies=["milk"]), [])
    expected = Profile()
    expected.CopyFrom(STORED)
    expected.weight_kg = 71
    expected.allergies[:] = ["milk"]
    assert merged == expected


def test_a_field_in_the_mask_that_is_not_set_is_cleared():
    merged = masks.merge(STORED, Profile(display_name="ignored"), ["weight_kg", "goals", "birth_date"])
    assert not merged.HasField("weight_kg")
    assert not merged.HasField("birth_date")
    assert not merged.goals
    assert merged.display_name == "Me"


def test_a_star_replaces_all_that_a_person_may_set():
    assert masks.merge(STORED, Profile(diet=Diet.DIET_VEGAN), ["*"]) == Profile(
        name="profiles/p", etag="7", diet=Diet.DIET_VEGAN
    )


@pytest.mark.parametrize("paths", [[], ["*"], ["name", "etag", "create_time"]])
def test_what_only_the_service_sets_stays(paths):
    wanted = Profile(name="profiles/other", etag="99", create_time={"seconds": 1})
    merged = masks.merge(STORED, wanted, paths)
    assert (merged.name, merged.etag, merged.create_time.seconds) == ("profiles/p", "7", 0)


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["weight"], "no field 'weight'"),
        (["birth_date.year"], "no field 'birth_date.year'"),
        (["*", "weight_kg"], "must stand alone"),
    ],
)
def test_a_path_that_is_not_a_field_is_a_problem(paths, problem):
    (found,) = masks.problems(paths)
    assert problem in found


def test_every_field_and_a_lone_star_are_good_masks():
    assert masks.problems(list(Profile.DESCRIPTOR.fields_by_name)) == []
    assert masks.problems(["*"]) == []
