"""The `mesh rollout` command over real Envoys: a bad canary is taken back, a good one goes to 100 %, killed or not."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from mesh.rollout.files import Files
from mesh.rollout.tests.walked import HOLD, Walked
from mesh.rollout.tests.walked import walked as start

BEGIN = (
    *("--to", "canary", "--steps", "30,100", "--interval", "1s", "--drain", "1s"),
    *("--guard", "error_rate<1%", "--guard", "p50<2x"),
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Walked]:
    """One mesh for all, under steady load."""
    async with start(tmp_path_factory.mktemp("home")) as mesh:
        loads = [asyncio.create_task(_repeat(mesh)) for _ in range(4)]
        yield mesh
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)


@pytest_asyncio.fixture(loop_scope="session")
async def walked(mesh: Walked) -> Walked:
    """The same with a good canary at 0 % that was never rolled out."""
    shutil.rmtree(mesh.paths.rollouts, ignore_errors=True)
    await mesh.anew()
    return mesh


async def _repeat(mesh: Walked, request: bytes = b"", **options: object) -> None:
    while True:
        await mesh.call(request, **options)


@pytest.mark.parametrize(("fail_every", "slow", "guard"), [(5, 1, "error_rate"), (0, 15, "p50")])
async def test_a_bad_canary_is_taken_back(walked: Walked, fail_every: int, slow: int, guard: str) -> None:
    walked.canary.fail_every, walked.canary.slow = fail_every, slow
    code, out = await walked.rollout(*BEGIN)
    assert code == 1, out
    assert f"back at 0 %: {guard}" in out
    assert await walked.weight() == 0


async def test_killed_at_every_act_of_a_promotion_it_goes_on_to_100(walked: Walked) -> None:
    values = walked.paths.home / "mine.yaml"
    values.write_text("services: { food: { canary: { weight: 3 } } } # mine\n")
    await walked.rollout(*BEGIN, "--write-values", str(values), killed_at=2)
    assert (walked.left(), await walked.weight()) == (("walking", 30), 0)  # written, not applied
    await walked.rollout("--resume", killed_at=3)
    assert (walked.left(), await walked.weight()) == (("walking", 30), 30)  # applied, not watched
    await walked.rollout("--resume", killed_at=5)
    assert (walked.left(), await walked.weight()) == (("walking", 100), 30)  # watched; the next one written
    await walked.rollout("--resume", killed_at=4)
    assert (walked.left(), await walked.weight()) == (("walking", 100), 100)  # watched; the end not written
    code, out = await walked.rollout("--resume")  # the file to write was named at the start
    assert code == 0, out
    assert values.read_text() == "services: { food: { canary: { weight: 100 } } } # mine\n"
    assert (walked.left(), await walked.weight()) == (("promoted", 100), 100)
    log = Files(walked.paths.rollouts, "food").log.read_text().splitlines()
    assert json.loads(log[-1])["event"] == "promoted"


async def test_killed_at_every_act_of_an_undoing_it_is_undone(walked: Walked) -> None:
    """And the calls that still run on the canary are shown, and waited for within the bound."""
    walked.canary.fail_every = 5
    await walked.rollout(*BEGIN, killed_at=5)
    assert (walked.left(), await walked.weight()) == (("undoing", 0), 30)  # found bad and written, not applied
    await walked.rollout("--abort", killed_at=3)
    assert (walked.left(), await walked.weight()) == (("undoing", 0), 0)  # applied, not drained
    walked.canary.held.clear()
    held = asyncio.create_task(_repeat(walked, HOLD, metadata=(("x-nourish-canary", "always"),)))
    try:
        code, out = await walked.rollout("--resume")
    finally:
        held.cancel()
        walked.canary.held.set()
    assert code == 1, out
    assert "draining: 1 calls on canary" in out
    assert "still running: 1 calls on canary" in out
    assert walked.left() == ("undone", 0)
