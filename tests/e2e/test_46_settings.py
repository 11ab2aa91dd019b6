"""An SRE changes what a running service reads, and takes it back: no process and no proxy is touched."""

import httpx
import pytest

from tests.e2e.harness import wait_until


@pytest.fixture
def mesh(mesh):
    """With the shipped values put back."""
    yield mesh
    mesh.run("apply")


def used(mesh) -> bool:
    """Whether a match of 98 % is sure enough."""
    body = {"lines": ["100 g granulated sugar"]}
    (line,) = httpx.post(f"{mesh.url}/api/v1/nutrition:analyze", json=body, timeout=20).json()["lines"]
    return line["used"]


def pids(mesh) -> list[tuple[int, int]]:
    return [(i["app"]["pid"], i["proxy"]["pid"]) for i in mesh.json("status")["instances"]]


def test_a_setting_is_followed_without_a_restart(mesh):
    before = pids(mesh)
    assert used(mesh)
    applied = mesh.apply({"services": {"nutrition": {"settings": {"matching.minConfidence": 1}}}})
    assert "nutrition: setting matching.minConfidence none -> 1, no proxy" in applied.stdout
    wait_until(lambda: not used(mesh), what="the new setting")
    (shown,) = mesh.json("settings", "nutrition")
    assert (shown["setting"], shown["value"]) == ("matching.minConfidence", 1)
    mesh.run("apply")
    wait_until(lambda: used(mesh), what="the default")
    assert pids(mesh) == before
