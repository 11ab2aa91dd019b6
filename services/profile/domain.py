"""What follows from a profile: age, body mass index, energy and macronutrients a day. Pure; formulas are cited."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from google.type import date_pb2
from nourish.profile.v1.profile_pb2 import ActivityLevel, Diet, Goal, Profile, Sex, Targets

MIFFLIN = (
    "Resting energy: Mifflin MD, St Jeor ST, et al. A new predictive equation for resting energy expenditure in healthy"
    " individuals. Am J Clin Nutr 1990;51:241-247."
)
ACTIVITY = (
    "Activity factors: McArdle WD, Katch FI, Katch VL. Exercise Physiology: Energy, Nutrition, and Human Performance,"
    " 4th ed., 1996."
)
WHO_BMI = (
    "Body mass index classes: World Health Organization. Obesity: preventing and managing the global epidemic."
    " Technical Report Series 894, 2000."
)
OBESITY_GUIDELINE = (
    "Energy deficit and floors: Jensen MD, et al. 2013 AHA/ACC/TOS guideline for the management of overweight and"
    " obesity in adults. Circulation 2014;129:S102-S138."
)
NHS_GAIN = "Energy surplus to gain weight: National Health Service (UK), Healthy ways to gain weight."
SLATER = (
    "Energy surplus to build muscle: Slater GJ, et al. Is an energy surplus required to maximize skeletal muscle"
    " hypertrophy associated with resistance training. Front Nutr 2019;6:131."
)
DRI = (
    "Protein allowance, macronutrient ranges and fibre: Institute of Medicine. Dietary Reference Intakes for energy,"
    " carbohydrate, fiber, fat, fatty acids, cholesterol, protein, and amino acids, 2005."
)
LEIDY = (
    "Protein to lose weight: Leidy HJ, et al. The role of protein in weight loss and maintenance. Am J Clin Nutr"
    " 2015;101:1320S-1329S."
)
MORTON = (
    "Protein to build muscle: Morton RW, et al. Protein supplementation and resistance training. Br J Sports Med"
    " 2018;52:376-384."
)
PROT_AGE = "Protein from 65 years on: Bauer J, et al. PROT-AGE study group. J Am Med Dir Assoc 2013;14:542-559."
FEINMAN = "Carbohydrate limits: Feinman RD, et al. Dietary carbohydrate restriction. Nutrition 2015;31:1-13."

MAX_AGE_YEARS = 120
MIN_TARGET_AGE_YEARS = 18
_WHO_ADULT_YEARS = 20  # below, WHO reads the index by age (growth reference 5-19 years, 2007)
_MIFFLIN_YEARS = range(19, 79)  # the ages of the study's subjects
_OLDER_YEARS = 65
_PLAUSIBLE_BMI = (8.0, 150.0)  # beyond is a slip of units sooner than a person

KCAL_PER_G_PROTEIN = KCAL_PER_G_CARBOHYDRATE = 4.0  # Atwater's general factors
KCAL_PER_G_FAT = 9.0
_FAT_SHARE = 0.30  # of energy; DRI's range is 20 to 35 %
_PROTEIN_SHARES = (0.10, 0.35)  # of energy; DRI
_FIBER_G_PER_KCAL = 14 / 1000  # DRI

_MIFFLIN_OFFSET_KCAL = {Sex.SEX_FEMALE: -161.0, Sex.SEX_MALE: 5.0}
_FLOOR_KCAL = {Sex.SEX_FEMALE: 1200.0, Sex.SEX_MALE: 1500.0}
_ACTIVITY_FACTOR = {
    ActivityLevel.ACTIVITY_LEVEL_SEDENTARY: 1.2,
    ActivityLevel.ACTIVITY_LEVEL_LIGHT: 1.375,
    ActivityLevel.ACTIVITY_LEVEL_MODERATE: 1.55,
    ActivityLevel.ACTIVITY_LEVEL_ACTIVE: 1.725,
    ActivityLevel.ACTIVITY_LEVEL_VERY_ACTIVE: 1.9,
}
_BMI_CLASS_FROM = (
    (40.0, "obesity III"),
    (35.0, "obesity II"),
    (30.0, "obesity I"),
    (25.0, "overweight"),
    (18.5, "normal"),
    (0.0, "underweight"),
)


@dataclass(frozen=True)
class _Plan:
    """What a goal asks for: kcal a day beside the expenditure, protein in g per kg of body weight, and who says so."""

    energy_kcal: float
    protein_g_per_kg: float
    sources: tuple[str, ...] = ()


_PLANS = {
    Goal.GOAL_LOSE_WEIGHT: _Plan(-500, 1.2, (OBESITY_GUIDELINE, LEIDY)),
    Goal.GOAL_MAINTAIN_WEIGHT: _Plan(0, 0.8),
    Goal.GOAL_GAIN_WEIGHT: _Plan(500, 0.8, (NHS_GAIN,)),
    Goal.GOAL_BUILD_MUSCLE: _Plan(360, 1.6, (SLATER, MORTON)),  # 1500 kJ, the cautious end
}
# Diet: the most carbohydrate, in grams and as a share of energy; fat takes what is left.
_CARBOHYDRATE_LIMIT = {Diet.DIET_KETO: (50.0, 0.10), Diet.DIET_LOW_CARB: (130.0, 0.26)}

_PREGNANCY = re.compile(r"pregnan|breast-?feeding|lactat", re.IGNORECASE)
_EATING_DISORDER = re.compile(r"anorexia|bulimi|eating disorder", re.IGNORECASE)
_KIDNEY = re.compile(r"kidney|renal|nephr|dialysis", re.IGNORECASE)


class IncompleteError(Exception):
    """The formulas need `fields` of the profile, which are not set."""

    def __init__(self, fields: list[str]) -> None:
        super().__init__(f"targets need {', '.join(fields)}: set them in the profile first")
        self.fields = fields


class UnsupportedError(Exception):
    """The formulas do not hold for this person."""


def to_date(value: date_pb2.Date) -> date:
    """The calendar date of a `google.type.Date`.

    Raises:
        ValueError: there is no such day.
    """
    return date(value.year, value.month, value.day)


def age_years(born: date, today: date) -> int:
    """Whole years lived. Who was born on 29 February has the birthday on 1 March in a common year."""
    return today.year - born.year - ((today.month, today.day) < (born.month, born.day))


def birth_date_problem(value: date_pb2.Date, today: date) -> str:
    """Why `value` cannot be anyone's birth date, or ``""``."""
    try:
        born = to_date(value)
    except ValueError:
        return f"there is no day {value.year:04}-{value.month:02}-{value.day:02}"
    if born >= today:
        return "must be in the past"
    if age_years(born, today) > MAX_AGE_YEARS:
        return f"must be at most {MAX_AGE_YEARS} years ago"
    return ""


def bmi(weight_kg: float, height_cm: float) -> float:
    """Body mass index, kg/m2, to two places (WHO's cut-offs have two): weight over the square of height."""
    return round(weight_kg / (height_cm / 100) ** 2, 2)


def bmi_class(index: float) -> str:
    """The class of an adult's body mass index (WHO Technical Report Series 894, 2000, table 2.1)."""
    return next(name for start, name in _BMI_CLASS_FROM if index >= start)


def bmr_kcal(sex: Sex.ValueType, weight_kg: float, height_cm: float, age: int) -> float:
    """Resting energy, kcal a day: 10 kg + 6.25 cm - 5 years, + 5 for men, - 161 for women (Mifflin-St Jeor 1990)."""
    return 10 * weight_kg + 6.25 * height_cm - 5 * age + _MIFFLIN_OFFSET_KCAL[sex]


def tdee_kcal(resting_kcal: float, level: ActivityLevel.ValueType) -> float:
    """Total daily energy, kcal: resting energy times 1.2 to 1.9 (McArdle, Katch and Katch 1996)."""
    return resting_kcal * _ACTIVITY_FACTOR[level]


def energy_kcal(total_kcal: float, goal: Goal.ValueType, sex: Sex.ValueType) -> float:
    """Energy to eat, kcal a day.

    A deficit stops at 1200 kcal for women and 1500 for men (AHA/ACC/TOS 2013), and never becomes a surplus.
    """
    wanted = total_kcal + _PLANS[goal].energy_kcal
    return wanted if wanted >= total_kcal else min(total_kcal, max(wanted, _FLOOR_KCAL[sex]))


@dataclass(frozen=True)
class Macros:
    """Grams a day."""

    protein_g: float
    fat_g: float
    carbohydrate_g: float
    fiber_g: float


def macros(energy: float, protein_g: float, diet: Diet.ValueType) -> Macros:
    """Splits `energy` (kcal) into macronutrients whose energy adds up to it.

    Protein is held within 10 and 35 % of energy, fat takes 30 % and carbohydrate the rest (ranges of DRI 2005). On a
    keto or low-carb diet carbohydrate is at most 50 or 130 g and 10 or 26 % of energy (Feinman 2015) and fat takes the
    rest. Fibre is 14 g per 1000 kcal (DRI 2005).
    """
    low, high = (share * energy / KCAL_PER_G_PROTEIN for share in _PROTEIN_SHARES)
    protein = min(max(protein_g, low), high)
    left = energy - protein * KCAL_PER_G_PROTEIN
    if diet in _CARBOHYDRATE_LIMIT:
        grams, share = _CARBOHYDRATE_LIMIT[diet]
        carbohydrate = min(grams, share * energy / KCAL_PER_G_CARBOHYDRATE)
        fat = (left - carbohydrate * KCAL_PER_G_CARBOHYDRATE) / KCAL_PER_G_FAT
    else:
        fat = _FAT_SHARE * energy / KCAL_PER_G_FAT
        carbohydrate = (left - fat * KCAL_PER_G_FAT) / KCAL_PER_G_CARBOHYDRATE
    return Macros(protein, fat, carbohydrate, _FIBER_G_PER_KCAL * energy)


def targets(profile: Profile, today: date) -> Targets:
    """The daily targets of an adult, with notes on what was assumed or held back; kcal and grams rounded to 0.1.

    Raises:
        IncompleteError: the profile lacks sex, birth_date, height_cm or weight_kg.
        UnsupportedError: the person is under 18, or height and weight are not those of an adult.
    """
    if missing := _missing(profile):
        raise IncompleteError(missing)
    age = age_years(to_date(profile.birth_date), today)
    index = bmi(profile.weight_kg, profile.height_cm)
    resting = bmr_kcal(profile.sex, profile.weight_kg, profile.height_cm, age)
    _check_supported(age, index, resting)
    level, level_notes = _level(profile)
    goal, goal_notes = _safe_goal(profile, index)
    total = tdee_kcal(resting, level)
    energy = energy_kcal(total, goal, profile.sex)
    if energy > total + _PLANS[goal].energy_kcal:
        goal_notes.append(f"Energy is held at {energy:.0f} kcal: a lower target needs medical supervision.")
    per_kg, protein_notes, protein_sources = _protein(profile, goal, age)
    split = macros(energy, per_kg * profile.weight_kg, profile.diet)
    diet_notes, diet_sources = _diet(profile)
    return Targets(
        bmi=index,
        bmi_class=bmi_class(index) if age >= _WHO_ADULT_YEARS else "",
        bmr_kcal=round(resting, 1),
        tdee_kcal=round(total, 1),
        energy_kcal=round(energy, 1),
        protein_g=round(split.protein_g, 1),
        fat_g=round(split.fat_g, 1),
        carbohydrate_g=round(split.carbohydrate_g, 1),
        fiber_g=round(split.fiber_g, 1),
        age_years=age,
        notes=[*_age_notes(age), *level_notes, *goal_notes, *protein_notes, *diet_notes],
        sources=[MIFFLIN, ACTIVITY, WHO_BMI, DRI, *_PLANS[goal].sources, *protein_sources, *diet_sources],
    )


def _missing(profile: Profile) -> list[str]:
    known = {
        "sex": bool(profile.sex),
        "birth_date": profile.HasField("birth_date"),
        "height_cm": profile.HasField("height_cm"),
        "weight_kg": profile.HasField("weight_kg"),
    }
    return [name for name, there in known.items() if not there]


def _check_supported(age: int, index: float, resting_kcal: float) -> None:
    if age < MIN_TARGET_AGE_YEARS:
        raise UnsupportedError(f"the formulas hold from {MIN_TARGET_AGE_YEARS} years on: ask a paediatrician")
    if not _PLAUSIBLE_BMI[0] <= index <= _PLAUSIBLE_BMI[1] or resting_kcal <= 0:
        raise UnsupportedError("height_cm and weight_kg are not those of an adult: check the figures and their units")


def _level(profile: Profile) -> tuple[ActivityLevel.ValueType, list[str]]:
    if profile.activity_level:
        return profile.activity_level, []
    note = "No activity level is set: reckoned with little or no exercise."
    return ActivityLevel.ACTIVITY_LEVEL_SEDENTARY, [note]


def _age_notes(age: int) -> list[str]:
    notes = []
    if age < _WHO_ADULT_YEARS:
        notes.append("No class of body mass index is given: under 20 years it depends on age.")
    if age not in _MIFFLIN_YEARS:
        notes.append("Resting energy is extrapolated: the formula was measured on people of 19 to 78 years.")
    return notes


def _safe_goal(profile: Profile, index: float) -> tuple[Goal.ValueType, list[str]]:
    """The goal to reckon with, and why it is not the first of the profile's if it is not."""
    goal = profile.goals[0] if profile.goals else Goal.GOAL_MAINTAIN_WEIGHT
    conditions = "\n".join(profile.conditions)
    notes = []
    if _PREGNANCY.search(conditions):
        notes.append(
            "The formulas do not count what pregnancy or breastfeeding needs: ask a doctor or midwife for your target."
        )
    elif _EATING_DISORDER.search(conditions):
        notes.append("With an eating disorder, energy targets belong into the hands of those who treat you.")
    elif goal == Goal.GOAL_LOSE_WEIGHT and index < 18.5:
        notes.append("Body mass index is below 18.5.")
    else:
        return goal, notes
    if goal == Goal.GOAL_LOSE_WEIGHT:
        goal = Goal.GOAL_MAINTAIN_WEIGHT
        notes.append("No energy deficit is given for this reason.")
    return goal, notes


def _protein(profile: Profile, goal: Goal.ValueType, age: int) -> tuple[float, list[str], list[str]]:
    """Protein in g per kg of body weight, with notes and sources beyond those of the goal."""
    per_kg = _PLANS[goal].protein_g_per_kg
    usual = _PLANS[Goal.GOAL_MAINTAIN_WEIGHT].protein_g_per_kg
    if _KIDNEY.search("\n".join(profile.conditions)):
        note = "With a kidney condition protein is not raised above what is usual: ask a doctor for your own target."
        return usual, [note], []
    if age >= _OLDER_YEARS and per_kg < 1.0:
        return 1.0, [], [PROT_AGE]
    return per_kg, [], []


def _diet(profile: Profile) -> tuple[list[str], list[str]]:
    """Notes and sources of a diet that limits carbohydrate."""
    if profile.diet not in _CARBOHYDRATE_LIMIT:
        return [], []
    note = "The diet limits carbohydrate and fat takes its place, outside the usual 20 to 35 % of energy."
    return [note], [FEINMAN]
