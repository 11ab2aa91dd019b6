"""Sums of nutrients, and what a day should bring.

General daily values are those of the US Nutrition Facts label for adults and children of 4 years and over: 21 CFR
101.9(c)(8)(iv) (vitamins and minerals, RDI) and 101.9(c)(9) (DRV, on a diet of 2,000 kcal), as amended in 2016.
"""

from collections.abc import Iterable, Mapping

from nourish.nutrition.v1 import nutrition_pb2 as pb
from nourish.profile.v1 import profile_pb2
from nourish.type.v1 import nutrients_pb2

FIELDS: tuple[str, ...] = tuple(field.name for field in nutrients_pb2.Nutrients.DESCRIPTOR.fields)
FDA = "FDA 21 CFR 101.9"
PROFILE = "profile"
DAILY_VALUES: Mapping[str, float] = {
    # (c)(9)
    "energy_kcal": 2000,
    "fat_g": 78,
    "saturated_fat_g": 20,
    "cholesterol_mg": 300,
    "carbohydrate_g": 275,
    "fiber_g": 28,
    "protein_g": 50,
    "sodium_mg": 2300,
    # (c)(8)(iv)
    "vitamin_a_rae_ug": 900,
    "vitamin_c_mg": 90,
    "calcium_mg": 1300,
    "iron_mg": 18,
    "vitamin_d_ug": 20,
    "vitamin_e_mg": 15,
    "vitamin_k1_ug": 120,
    "thiamin_mg": 1.2,
    "riboflavin_mg": 1.3,
    "niacin_mg": 16,
    "vitamin_b6_mg": 1.7,
    "folate_ug": 400,
    "vitamin_b12_ug": 2.4,
    "pantothenic_acid_mg": 5,
    "phosphorus_mg": 1250,
    "iodine_ug": 150,
    "magnesium_mg": 420,
    "zinc_mg": 11,
    "selenium_ug": 55,
    "copper_mg": 0.9,
    "manganese_mg": 2.3,
    "molybdenum_ug": 45,
    "potassium_mg": 4700,
    "choline_mg": 550,
}
_FROM_PROFILE = ("energy_kcal", "protein_g", "fat_g", "carbohydrate_g", "fiber_g")
# Two definitions of one thing: a food that has either lacks neither.
_EITHER = {
    "sugars_g": "sugars_nlea_g",
    "sugars_nlea_g": "sugars_g",
    "fiber_g": "fiber_aoac_2011_g",
    "fiber_aoac_2011_g": "fiber_g",
}
_UNITS = ("_kcal", "_rae_ug", "_mk4_ug", "_aoac_2011_g", "_nlea_g", "_ug", "_mg", "_g")


def scaled(nutrients: nutrients_pb2.Nutrients, factor: float) -> nutrients_pb2.Nutrients:
    """Every amount times `factor`; what is absent stays absent."""
    return nutrients_pb2.Nutrients(**{field.name: tidy(value * factor) for field, value in nutrients.ListFields()})


def summed(parts: Iterable[nutrients_pb2.Nutrients]) -> nutrients_pb2.Nutrients:
    """The sum; a nutrient is absent only if no part has it, so where some lack it the sum is "at least"."""
    sums: dict[str, float] = {}
    for part in parts:
        for field, value in part.ListFields():
            sums[field.name] = sums.get(field.name, 0.0) + value
    return nutrients_pb2.Nutrients(**{name: tidy(value) for name, value in sums.items()})


def tidy(amount: float, digits: int = 9) -> float:
    """To so many significant digits: 0.1 + 0.2 is 0.3."""
    return float(f"{amount:.{digits}g}")


def missing(nutrients: nutrients_pb2.Nutrients) -> list[str]:
    """The nutrients that a food has no figure for, in plain words: "vitamin d", "iodine"."""
    have = {field.name for field, _ in nutrients.ListFields()}
    return [_plain(name) for name in FIELDS if name not in have and _EITHER.get(name) not in have]


def shares(
    serving: nutrients_pb2.Nutrients, targets: profile_pb2.Targets | None = None
) -> Iterable[pb.DailyValueShare]:
    """A serving beside a day's needs, for each nutrient that has both; a profile's targets come first."""
    for name, general in DAILY_VALUES.items():
        if not serving.HasField(name):  # type: ignore[arg-type]  # DAILY_VALUES holds field names, a test proves it
            continue
        own = float(getattr(targets, name)) if targets is not None and name in _FROM_PROFILE else 0.0
        value, source = (own, PROFILE) if own > 0 else (general, FDA)
        yield pb.DailyValueShare(nutrient=name, daily_value=value, share=getattr(serving, name) / value, source=source)


def _plain(name: str) -> str:
    suffix = next((unit for unit in _UNITS if name.endswith(unit)), "")
    return name.removesuffix(suffix).replace("_", " ")
