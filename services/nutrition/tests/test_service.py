"""The service as its callers see it: what is said of each line, what is asked of other services, what fails."""

from typing import Any

import grpc
import pytest
from nourish.nutrition.v1 import nutrition_pb2 as pb
from nourish.nutrition.v1.nutrition_pb2_grpc import NutritionServiceStub

from mesh.runtime.testing import as_user, with_settings

# What her sidecar makes of her token, and the token.
ALICE = (*as_user("alice", "profile.read"), ("authorization", "Bearer alice"))


async def analyse(nutrition: NutritionServiceStub, *lines: str, metadata: Any = None, **fields: Any) -> Any:
    """The answer for some lines."""
    request = pb.AnalyzeIngredientsRequest(lines=lines, **fields)
    return await nutrition.AnalyzeIngredients(request, metadata=metadata)  # type: ignore[misc]  # an aio channel


def kinds(line: pb.LineAnalysis) -> set["pb.IssueKind.ValueType"]:
    """The kinds of its issues."""
    return {issue.kind for issue in line.issues}


async def test_adds_up_what_is_used_and_divides_by_servings(nutrition: NutritionServiceStub) -> None:
    """Lines that are not used add nothing; the answer keeps the order sent."""
    answer = await analyse(nutrition, "100 g butter", "1 cup unicorn dust", "100 g sugar", servings=2)
    butter, dust, sugar = answer.lines
    assert [line.used for line in answer.lines] == [True, False, True]
    assert (answer.servings, answer.total_grams) == (2, 200)
    assert answer.total.energy_kcal == pytest.approx(butter.nutrients.energy_kcal + sugar.nutrients.energy_kcal)
    assert answer.per_serving.energy_kcal == pytest.approx(answer.total.energy_kcal / 2)
    assert dust.line == "1 cup unicorn dust"
    share = next(s for s in answer.daily_values if s.nutrient == "energy_kcal")
    assert share.share == pytest.approx(answer.per_serving.energy_kcal / 2000)


@pytest.mark.parametrize(
    ("line", "used", "expected"),
    [
        ("2 cups unicorn dust", False, pb.ISSUE_KIND_NO_MATCH),
        ("asdfgh", False, pb.ISSUE_KIND_NO_MATCH),
        ("1/0 cup sugar", False, pb.ISSUE_KIND_NO_MATCH),
        ("salt, to taste", False, pb.ISSUE_KIND_NO_AMOUNT),
        ("salt and pepper to taste", False, pb.ISSUE_KIND_NO_AMOUNT),
        ("water, as needed", False, pb.ISSUE_KIND_NO_AMOUNT),
        ("3 heads paneer", False, pb.ISSUE_KIND_NO_WEIGHT),
        ("1 cup shredded vegan cheddar", True, pb.ISSUE_KIND_WEAK_MATCH),
        ("1 bunch cilantro", True, pb.ISSUE_KIND_ESTIMATED_WEIGHT),
        ("1 tbsp butter or oil", True, pb.ISSUE_KIND_ALTERNATIVE),
        ("2 eggs and 1 egg yolk", True, pb.ISSUE_KIND_ALTERNATIVE),
        ("1 tbsp olive oil", True, pb.ISSUE_KIND_MISSING_NUTRIENTS),
    ],
)
async def test_says_what_it_could_not_use_or_is_not_sure_of(
    nutrition: NutritionServiceStub, line: str, used: bool, expected: "pb.IssueKind.ValueType"
) -> None:
    """Never a silent guess."""
    answer = (await analyse(nutrition, line)).lines[0]
    assert answer.used == used
    assert expected in kinds(answer)
    assert all(issue.message for issue in answer.issues)
    assert answer.HasField("grams") == used


async def test_how_sure_a_match_must_be_is_a_setting(nutrition: NutritionServiceStub) -> None:
    """It holds for the next call; by default a weak match is used."""
    (line,) = (await analyse(nutrition, "1 cup shredded vegan cheddar")).lines
    assert line.used
    with with_settings({"matching.minConfidence": 0.9}):
        (line,) = (await analyse(nutrition, "1 cup shredded vegan cheddar")).lines
    assert (line.used, kinds(line)) == (False, {pb.ISSUE_KIND_NO_MATCH})


async def test_water_and_salt_are_ordinary_foods(nutrition: NutritionServiceStub) -> None:
    """They weigh, and add what they have; a weight has no noise of unit conversions."""
    water, salt = (await analyse(nutrition, "2 cups water", "1 tsp salt")).lines
    assert salt.grams == 6
    assert (water.used, water.nutrients.energy_kcal, water.grams) == (True, 0, pytest.approx(474))
    assert (salt.used, salt.grams) == (True, pytest.approx(6))
    assert salt.nutrients.sodium_mg > 2000


async def test_identical_lines_are_looked_up_once(nutrition: NutritionServiceStub, fake_food: Any) -> None:
    """And so is one food in several lines; each line is still answered."""
    answer = await analyse(nutrition, "1 onion", "1 onion", "2 cups chopped onions", "1 onion")
    assert len(answer.lines) == 4
    assert all(line.used for line in answer.lines)
    assert fake_food.queries == ["onion raw"]


async def test_what_one_request_found_the_next_one_has_but_a_users_own_foods_are_asked_for_each_time(
    nutrition: NutritionServiceStub, fake_food: Any
) -> None:
    """Who has just added a food finds it."""
    for _ in range(2):
        assert (await analyse(nutrition, "1 onion")).lines[0].used
    assert fake_food.queries == ["onion raw"]
    for _ in range(2):
        assert (await analyse(nutrition, "1 onion", metadata=ALICE)).lines[0].used
    assert fake_food.queries == ["onion raw"] * 3


async def test_a_line_costs_two_searches_at_most(nutrition: NutritionServiceStub, fake_food: Any) -> None:
    """The second only if the first gave nothing sure."""
    await analyse(nutrition, "1 cup all-purpose flour")
    assert len(fake_food.queries) == 1
    await analyse(nutrition, "1 cup unheard-of vegan cheddar")
    assert len(fake_food.queries) == 3


async def test_branded_foods_are_asked_for_last(nutrition: NutritionServiceStub, fake_food: Any) -> None:
    """A name that no generic food has may be a brand's."""
    answer = (await analyse(nutrition, "100 g zorblax crunchies")).lines[0]
    assert answer.food == "foods/brand"
    assert len(fake_food.queries) == 2
    assert not (await analyse(nutrition, "100 g unobtainium crunchies")).lines[0].used  # half a name is another product


async def test_a_failure_of_food_is_passed_on(nutrition: NutritionServiceStub, fake_food: Any) -> None:
    """As UNAVAILABLE: the caller may retry; nothing half-right is answered."""
    fake_food.failure = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await analyse(nutrition, "1 onion", "2 eggs", "1 cup milk")
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_profile_sets_the_daily_values(nutrition: NutritionServiceStub) -> None:
    """Energy by the profile, calcium by the law; the user's token goes on to ProfileService."""
    answer = await analyse(nutrition, "100 g butter", profile="profiles/me", metadata=ALICE)
    sources = {share.nutrient: (share.daily_value, share.source) for share in answer.daily_values}
    assert sources["energy_kcal"] == (1800, "profile")
    assert sources["calcium_mg"] == (1300, "FDA 21 CFR 101.9")


async def test_a_profile_needs_its_user(nutrition: NutritionServiceStub) -> None:
    """Without a user UNAUTHENTICATED, of another's profile what ProfileService says."""
    with pytest.raises(grpc.aio.AioRpcError) as nobody:
        await analyse(nutrition, "1 onion", profile="profiles/me")
    with pytest.raises(grpc.aio.AioRpcError) as other:
        await analyse(nutrition, "1 onion", profile="profiles/none", metadata=ALICE)
    codes = nobody.value.code(), other.value.code()
    assert codes == (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND)


async def test_limits_of_the_contract_hold(nutrition: NutritionServiceStub) -> None:
    """No lines, too many, or no servings are INVALID_ARGUMENT."""
    for lines, servings in (([], 1), (["1 onion"] * 101, 1), (["1 onion"], 0), (["x" * 501], 1), (["a\0b"], 1)):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await analyse(nutrition, *lines, servings=servings)
        assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
