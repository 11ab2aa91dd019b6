"""The targets: worked by hand, at their edges, and as laws that hold for everyone."""

from datetime import date

import pytest
from google.type.date_pb2 import Date
from hypothesis import given
from hypothesis import strategies as st
from nourish.profile.v1.profile_pb2 import ActivityLevel, Diet, Goal, Profile, Sex

from services.profile import domain

TODAY = date(2026, 11, 22)
GOALS = [g for g in Goal.values() if g]
LEVELS = [a for a in ActivityLevel.values() if a]

adults = st.builds(
    Profile,
    sex=st.sampled_from([Sex.SEX_FEMALE, Sex.SEX_MALE]),
    birth_date=st.dates(date(1936, 11, 23), date(2008, 11, 22)).map(
        lambda d: Date(year=d.year, month=d.month, day=d.day)
    ),
    height_cm=st.floats(145, 200),
    weight_kg=st.floats(40, 200),
    activity_level=st.sampled_from(ActivityLevel.values()),
    goals=st.lists(st.sampled_from(GOALS), max_size=4, unique=True),
    diet=st.sampled_from(Diet.values()),
    conditions=st.lists(
        st.sampled_from(["pregnancy", "kidney disease", "asthma", "anorexia"]), max_size=2, unique=True
    ),
)


def person(sex=Sex.SEX_FEMALE, born=(1990, 5, 17), height_cm=165.0, weight_kg=60.0, **fields):
    birth_date = Date(year=born[0], month=born[1], day=born[2])
    return Profile(sex=sex, birth_date=birth_date, height_cm=height_cm, weight_kg=weight_kg, **fields)


def text(notes):
    return " ".join(notes)


def test_worked_by_hand_a_woman_of_36_who_keeps_her_weight():
    """10 x 60 + 6.25 x 165 - 5 x 36 - 161 = 600 + 1031.25 - 180 - 161 = 1290.25; x 1.375 = 1774.09 kcal.

    Protein 0.8 x 60 = 48 g; fat 0.3 x 1774.09 / 9 = 59.1 g; carbohydrate (1774.09 - 192 - 532.23) / 4 = 262.5 g;
    fibre 14 x 1.774 = 24.8 g; index 60 / 1.65^2 = 22.04.
    """
    found = domain.targets(
        person(activity_level=ActivityLevel.ACTIVITY_LEVEL_LIGHT, goals=[Goal.GOAL_MAINTAIN_WEIGHT]), TODAY
    )
    assert (found.age_years, found.bmi, found.bmi_class) == (36, 22.04, "normal")
    assert (found.bmr_kcal, found.tdee_kcal, found.energy_kcal) == pytest.approx((1290.25, 1774.09, 1774.09), abs=0.06)
    split = (found.protein_g, found.fat_g, found.carbohydrate_g, found.fiber_g)
    assert split == pytest.approx((48.0, 59.1, 262.5, 24.8), abs=0.06)
    assert not found.notes


def test_worked_by_hand_a_man_of_50_who_loses_weight():
    """10 x 95 + 6.25 x 180 - 5 x 50 + 5 = 950 + 1125 - 250 + 5 = 1830; x 1.55 = 2836.5; - 500 = 2336.5 kcal.

    Protein 1.2 x 95 = 114 g; fat 0.3 x 2336.5 / 9 = 77.9 g; carbohydrate (2336.5 - 456 - 700.95) / 4 = 294.9 g;
    index 95 / 1.8^2 = 29.32.
    """
    man = person(
        Sex.SEX_MALE,
        (1976, 11, 22),
        180,
        95,
        activity_level=ActivityLevel.ACTIVITY_LEVEL_MODERATE,
        goals=[Goal.GOAL_LOSE_WEIGHT],
    )
    found = domain.targets(man, TODAY)
    assert (found.age_years, found.bmi, found.bmi_class) == (50, 29.32, "overweight")
    assert (found.bmr_kcal, found.tdee_kcal, found.energy_kcal) == (1830.0, 2836.5, 2336.5)
    split = (found.protein_g, found.fat_g, found.carbohydrate_g, found.fiber_g)
    assert split == pytest.approx((114.0, 77.9, 294.9, 32.7), abs=0.06)
    assert not found.notes


def test_worked_by_hand_a_man_of_25_who_builds_muscle():
    """10 x 80 + 6.25 x 185 - 5 x 25 + 5 = 1836.25; x 1.725 = 3167.53; + 360 = 3527.53; protein 1.6 x 80 = 128 g."""
    man = person(
        Sex.SEX_MALE,
        (2001, 3, 1),
        185,
        80,
        activity_level=ActivityLevel.ACTIVITY_LEVEL_ACTIVE,
        goals=[Goal.GOAL_BUILD_MUSCLE, Goal.GOAL_LOSE_WEIGHT],
    )
    found = domain.targets(man, TODAY)
    assert (found.energy_kcal, found.protein_g) == (3527.5, 128.0)
    assert domain.MORTON in found.sources


def test_worked_by_hand_a_keto_day_of_2000_kcal():
    """Carbohydrate 10 % = 50 g = 200 kcal; protein 80 g = 320 kcal; fat (2000 - 520) / 9 = 164.4 g."""
    split = domain.macros(2000, 80, Diet.DIET_KETO)
    assert (split.protein_g, split.carbohydrate_g) == (80, 50)
    assert split.fat_g == pytest.approx(164.44, abs=0.01)


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (18.49, "underweight"),
        (18.5, "normal"),
        (24.99, "normal"),
        (25.0, "overweight"),
        (29.99, "overweight"),
        (30.0, "obesity I"),
        (34.99, "obesity I"),
        (35.0, "obesity II"),
        (39.99, "obesity II"),
        (40.0, "obesity III"),
    ],
)
def test_the_classes_of_body_mass_index_change_at_the_who_cut_offs(index, name):
    assert domain.bmi_class(index) == name


@pytest.mark.parametrize(
    ("born", "today", "age"),
    [
        (date(2000, 11, 23), date(2026, 11, 22), 25),
        (date(2000, 11, 22), date(2026, 11, 22), 26),
        (date(2004, 2, 29), date(2026, 2, 28), 21),
        (date(2004, 2, 29), date(2026, 3, 1), 22),
    ],
)
def test_age_counts_whole_years_also_from_29_february(born, today, age):
    assert domain.age_years(born, today) == age


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ((2023, 2, 29), "no day 2023-02-29"),
        ((2026, 11, 22), "in the past"),
        ((2027, 1, 1), "in the past"),
        ((1905, 11, 22), "at most 120 years"),
        ((1905, 11, 23), ""),
        ((2024, 2, 29), ""),
    ],
)
def test_a_birth_date_is_a_real_day_in_the_past_and_at_most_120_years_ago(value, problem):
    found = domain.birth_date_problem(Date(year=value[0], month=value[1], day=value[2]), TODAY)
    assert problem in found
    assert bool(problem) == bool(found)


def test_what_the_formulas_lack_is_named():
    with pytest.raises(domain.IncompleteError) as caught:
        domain.targets(Profile(sex=Sex.SEX_MALE, height_cm=180), TODAY)
    assert caught.value.fields == ["birth_date", "weight_kg"]


def test_there_are_no_targets_before_the_eighteenth_birthday():
    with pytest.raises(domain.UnsupportedError, match="18 years"):
        domain.targets(person(born=(2008, 11, 23)), TODAY)
    assert domain.targets(person(born=(2008, 11, 22)), TODAY).age_years == 18


def test_height_and_weight_that_no_adult_has_are_refused():
    with pytest.raises(domain.UnsupportedError, match="units"):
        domain.targets(person(height_cm=65, weight_kg=165), TODAY)


def test_under_20_and_over_78_the_limits_of_the_sources_are_noted():
    young, old = domain.targets(person(born=(2008, 1, 1)), TODAY), domain.targets(person(born=(1947, 1, 1)), TODAY)
    assert young.bmi_class == ""
    assert "under 20 years" in text(young.notes)
    assert old.bmi_class == "normal"
    assert "19 to 78" in text(young.notes)
    assert "19 to 78" in text(old.notes)


def test_without_an_activity_level_little_exercise_is_reckoned_and_said():
    found = domain.targets(person(), TODAY)
    assert found.tdee_kcal == pytest.approx(1290.25 * 1.2, abs=0.06)
    assert "No activity level" in text(found.notes)


def test_a_deficit_stops_at_1200_kcal_for_women_and_1500_for_men():
    sedentary = {"activity_level": ActivityLevel.ACTIVITY_LEVEL_SEDENTARY, "goals": [Goal.GOAL_LOSE_WEIGHT]}
    woman = domain.targets(person(**sedentary), TODAY)  # 1548.3 kcal a day
    man = domain.targets(person(Sex.SEX_MALE, **sedentary), TODAY)  # 1747.5 kcal a day
    assert (woman.energy_kcal, man.energy_kcal) == (1200, 1500)
    assert "1200 kcal" in text(woman.notes)


def test_the_floor_never_turns_a_deficit_into_a_surplus():
    """10 x 45 + 6.25 x 150 - 5 x 75 - 161 = 851.5; x 1.2 = 1021.8 kcal, which is below the floor."""
    small = person(born=(1951, 1, 1), height_cm=150, weight_kg=45, goals=[Goal.GOAL_LOSE_WEIGHT])
    assert domain.targets(small, TODAY).energy_kcal == 1021.8


@pytest.mark.parametrize("condition", ["Pregnancy", "breastfeeding", "Anorexia nervosa", "eating disorder"])
def test_a_condition_that_forbids_a_deficit_gets_none_and_says_so(condition):
    found = domain.targets(person(goals=[Goal.GOAL_LOSE_WEIGHT], conditions=[condition]), TODAY)
    assert found.energy_kcal == found.tdee_kcal
    assert "No energy deficit" in text(found.notes)


def test_who_is_underweight_gets_no_deficit():
    found = domain.targets(person(weight_kg=48, goals=[Goal.GOAL_LOSE_WEIGHT]), TODAY)
    assert found.bmi_class == "underweight"
    assert found.energy_kcal == found.tdee_kcal


def test_a_kidney_condition_keeps_protein_at_the_usual_allowance():
    """0.8 x 60 = 48 g beats 1.6 x 60 = 96 g; a tenth of the energy is less than either."""
    found = domain.targets(person(goals=[Goal.GOAL_BUILD_MUSCLE], conditions=["chronic kidney disease"]), TODAY)
    assert found.protein_g == pytest.approx(max(48.0, found.energy_kcal * 0.1 / 4), abs=0.06)
    assert "kidney" in text(found.notes)


def test_from_65_years_on_protein_is_at_least_1_g_per_kg():
    assert domain.targets(person(born=(1961, 11, 22)), TODAY).protein_g == 60.0
    assert domain.targets(person(born=(1961, 11, 23)), TODAY).protein_g == 48.0


@given(adults)
def test_the_energy_of_the_macronutrients_is_the_energy_target(profile):
    found = domain.targets(profile, TODAY)
    total = 4 * found.protein_g + 9 * found.fat_g + 4 * found.carbohydrate_g
    assert total == pytest.approx(found.energy_kcal, abs=4 * 0.05 + 9 * 0.05 + 4 * 0.05 + 0.051)
    assert min(found.protein_g, found.fat_g, found.carbohydrate_g, found.fiber_g) > 0


@given(adults, st.floats(0, 50))
def test_who_weighs_more_needs_no_less(profile, more):
    heavier = Profile()
    heavier.CopyFrom(profile)
    heavier.weight_kg += more
    light, heavy = domain.targets(profile, TODAY), domain.targets(heavier, TODAY)
    assert light.bmr_kcal <= heavy.bmr_kcal
    assert light.tdee_kcal <= heavy.tdee_kcal
    if light.bmi >= 18.5:  # below, a wish to lose weight is not granted
        assert light.energy_kcal <= heavy.energy_kcal
        assert light.protein_g <= heavy.protein_g


@given(adults)
def test_energy_is_never_below_both_the_floor_and_the_expenditure(profile):
    found = domain.targets(profile, TODAY)
    floor = 1200 if profile.sex == Sex.SEX_FEMALE else 1500
    assert found.energy_kcal >= min(floor, found.tdee_kcal)


@given(adults)
def test_more_activity_never_lowers_the_target(profile):
    energies = []
    for level in LEVELS:
        profile.activity_level = level
        energies.append(domain.targets(profile, TODAY).energy_kcal)
    assert energies == sorted(energies)
