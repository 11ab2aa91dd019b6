"""Sums and daily values."""

import pytest
from nourish.nutrition.v1 import nutrition_pb2 as pb
from nourish.profile.v1 import profile_pb2
from nourish.type.v1.nutrients_pb2 import Nutrients

from services.nutrition import totals


def test_sums_what_is_known_and_leaves_out_what_nobody_knows() -> None:
    """Absent is not zero: a sum of 0 stays, a nutrient of no part stays absent."""
    total = totals.summed([Nutrients(energy_kcal=10, iron_mg=0), Nutrients(energy_kcal=5, fat_g=2), Nutrients()])
    assert total == Nutrients(energy_kcal=15, iron_mg=0, fat_g=2)
    assert totals.scaled(total, 0.5) == Nutrients(energy_kcal=7.5, iron_mg=0, fat_g=1)


def test_names_what_a_food_lacks_in_plain_words() -> None:
    """Two definitions of sugars or fibre count as one."""
    everything = {name: 1.0 for name in totals.FIELDS if name not in {"vitamin_d_ug", "iodine_ug", "sugars_nlea_g"}}
    assert totals.missing(Nutrients(**everything)) == ["vitamin d", "iodine"]
    assert len(totals.FIELDS) == 39


def test_daily_values_are_those_of_the_law() -> None:
    """21 CFR 101.9(c)(8)(iv) and (c)(9): a few of them, and that all are fields of Nutrients."""
    assert set(totals.DAILY_VALUES) <= set(totals.FIELDS)
    serving = Nutrients(energy_kcal=500, sodium_mg=230, vitamin_d_ug=5, dha_g=1)
    shares = {s.nutrient: s for s in totals.shares(serving)}
    assert set(shares) == {"energy_kcal", "sodium_mg", "vitamin_d_ug"}
    assert [shares[n].share for n in ("energy_kcal", "sodium_mg", "vitamin_d_ug")] == pytest.approx([0.25, 0.1, 0.25])
    assert {s.source for s in shares.values()} == {"FDA 21 CFR 101.9"}


def test_a_profile_replaces_the_five_that_it_has() -> None:
    """Energy and the macronutrients are its own; minerals stay the law's; a target of 0 replaces nothing."""
    targets = profile_pb2.Targets(energy_kcal=1000, protein_g=100)
    serving = Nutrients(energy_kcal=500, protein_g=50, fat_g=39, iron_mg=9)
    shares: dict[str, pb.DailyValueShare] = {s.nutrient: s for s in totals.shares(serving, targets)}
    assert {name: (round(s.share, 3), s.source) for name, s in shares.items()} == {
        "energy_kcal": (0.5, "profile"),
        "protein_g": (0.5, "profile"),
        "fat_g": (0.5, "FDA 21 CFR 101.9"),
        "iron_mg": (0.5, "FDA 21 CFR 101.9"),
    }


def test_sums_and_multiples_are_free_of_the_noise_of_binary_fractions() -> None:
    assert totals.summed([Nutrients(fat_g=0.1), Nutrients(fat_g=0.2)]).fat_g == 0.3
    assert totals.scaled(Nutrients(vitamin_b6_mg=0.1), 3).vitamin_b6_mg == 0.3
