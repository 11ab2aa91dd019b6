"""Guards, verdicts and the walk, without a mesh."""

from __future__ import annotations

from math import comb
from pathlib import Path
from random import Random

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from hypothesis import given
from hypothesis import strategies as st

from mesh.compatibility import violations
from mesh.contract import Contract
from mesh.local.errors import AlreadyRunningError
from mesh.rollout.files import Files
from mesh.rollout.guards import Guard, Outcome, judge, tail, wilson
from mesh.rollout.samples import Sample, since
from mesh.rollout.walk import Walk, parse_steps

WALK = Walk("food", (1, 10, 100), ("error_rate<1%",), interval=20, patience=60, drain=1)
FOOD = "nourish.food.v1.FoodService"


def sample(calls: int, failures: int = 0, ms: float = 10) -> Sample:
    return Sample(calls, failures, {ms: (ms / 10, calls)})


def outcome(guard: str, canary: Sample, stable: Sample, final: bool = False) -> Outcome:
    return judge((Guard.parse(guard),), canary, stable, final=final)[0]


@pytest.mark.parametrize(
    "text", ["", "errors<1%", "error_rate<1", "error_rate<1x", "p99<1%", "p99>1.3x", "p99<+3x", "p99<0x", "p5<2x"]
)
def test_a_bad_guard_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"guard|measured|goes with|limit"):
        Guard.parse(text)


def test_a_clear_failure_is_bad_before_the_step_ends() -> None:
    good = sample(1000)
    assert outcome("error_rate<1%", sample(30, 6), good) is Outcome.BAD
    assert outcome("error_rate<+0.5%", sample(60, 12), good) is Outcome.BAD
    assert outcome("p99<1.3x", sample(30, ms=20), good) is Outcome.BAD
    assert outcome("p50<15ms", sample(30, ms=20), good) is Outcome.BAD


def test_failures_that_stable_has_too_are_no_regression() -> None:
    assert outcome("error_rate<+1%", sample(500, 50), sample(500, 50), final=True) is Outcome.GOOD


def test_too_few_calls_are_never_good() -> None:
    few, many = sample(30), sample(1000)
    assert outcome("error_rate<1%", few, many, final=True) is Outcome.UNSURE
    assert outcome("p99<1.3x", few, many, final=True) is Outcome.UNSURE
    assert outcome("p99<1.3x", sample(100), many, final=True) is Outcome.GOOD
    assert outcome("error_rate<1%", Sample(), Sample(), final=True) is Outcome.UNSURE


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_wilson_holds_the_share(calls: int, failures: int) -> None:
    failures = min(failures, calls)
    low, high = wilson(failures, calls, 3)
    assert -1e-9 <= low <= failures / calls + 1e-9
    assert failures / calls - 1e-9 <= high <= 1 + 1e-9


def test_the_tail_is_the_exact_binomial() -> None:
    def exact(failures: int, calls: int, p: float) -> float:
        return sum(comb(calls, k) * p**k * (1 - p) ** (calls - k) for k in range(failures, calls + 1))

    for failures, calls, limit in ((0, 20, 0.01), (2, 20, 0.01), (3, 20, 0.01), (12, 500, 0.01), (7, 9, 0.5)):
        assert tail(failures, calls, limit) == pytest.approx(exact(failures, calls, limit), rel=1e-6)
    assert tail(9000, 10000, 0.01) < 1e-9


@pytest.mark.parametrize(("rate", "bad_at_most"), [(0.005, 0.02), (0.2, 1.0)])
def test_a_canary_within_its_limit_is_seldom_taken_back_though_looked_at_forty_times(
    rate: float, bad_at_most: float
) -> None:
    """Half the limit: under 2 % of 400 rollouts' steps of 400 calls. Twenty times the limit: each, within 100 calls."""
    dice, guard, bad = Random(1), Guard.parse("error_rate<1%"), 0
    for _ in range(400):
        failures = 0
        for calls in range(1, 401):
            failures += dice.random() < rate
            if calls % 10 == 0 and guard.judge(Sample(calls, failures), Sample(), final=False).outcome is Outcome.BAD:
                bad += 1
                assert rate < 0.01 or calls <= 100
                break
    assert bad <= 400 * bad_at_most
    assert bad == 400 or rate < 0.01


def test_a_percentile_that_too_few_calls_can_bound_is_not_called_bad() -> None:
    assert outcome("p99<1.3x", sample(30, ms=20), sample(500)) is Outcome.UNSURE
    assert outcome("p99<1.3x", sample(30, ms=20), sample(500), final=True) is Outcome.BAD


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=50))
def test_percentiles_rise(times: list[float]) -> None:
    all_of_them = Sample(len(times), 0, {t: (t / 10, 1) for t in times})
    found = [all_of_them.percentile(p) for p in (0.1, 0.5, 0.9, 0.99)]
    assert found == sorted(found)


def test_a_restarted_proxy_counts_anew() -> None:
    assert since(sample(100, 5), sample(30, 1)) == sample(30, 1)
    assert since(sample(100, 5), sample(130, 6)) == sample(30, 1)


def test_the_walk_holds_promotes_or_undoes() -> None:
    assert WALK.advance(Outcome.GOOD, [], 19) is None
    second = WALK.advance(Outcome.GOOD, [], 20)
    assert second
    assert second.weight == 10
    assert WALK.advance(Outcome.UNSURE, ["few"], 79) is None
    late = WALK.advance(Outcome.UNSURE, ["few"], 80)
    early = WALK.advance(Outcome.BAD, ["fails"], 1)
    for undone in (late, early):
        assert undone
        assert (undone.phase, undone.weight, undone.shifted().over) == ("undoing", 0, True)


@pytest.mark.parametrize("text", ["", "0,10", "10,5", "10,10", "101", "a"])
def test_bad_steps_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="steps are"):
        parse_steps(text)


def test_the_state_reads_back_and_only_one_walks(tmp_path: Path) -> None:
    files = Files(tmp_path, "food")
    assert files.read() is None
    files.write(WALK)
    assert files.read() == WALK
    with files.locked(), pytest.raises(AlreadyRunningError), Files(tmp_path, "food").locked():
        pass


def food(edit: str = "") -> object:
    """The food service as committed, or after an edit of its file."""
    pool = DescriptorPool()
    for original in Contract.read().descriptors.file:
        file = descriptor_pb2.FileDescriptorProto.FromString(original.SerializeToString())
        if file.name == "nourish/food/v1/food.proto":
            request = next(m for m in file.message_type if m.name == "GetFoodRequest")
            if edit == "method":
                del file.service[0].method[0]
            elif edit == "number":
                request.field[0].number = 99
            elif edit == "type":
                request.field[0].type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
            elif edit == "json":
                request.field[0].json_name = "other"
            elif edit == "stream":
                file.service[0].method[0].server_streaming = True
            elif edit == "added":
                request.field.add(name="extra", number=99, type=9, label=1, json_name="extra")
        pool.Add(file)
    return pool.FindServiceByName(FOOD)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [("method", "is gone"), ("number", "is now 99"), ("type", "bytes"), ("json", "other"), ("stream", "a stream")],
)
def test_an_incompatible_contract_is_named(edit: str, sentence: str) -> None:
    assert sentence in " ".join(violations(food(), food(edit)))


def test_an_added_field_breaks_nobody() -> None:
    assert violations(food(), food()) == violations(food(), food("added")) == []
