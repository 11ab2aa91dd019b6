"""A real Envoy takes a renewed certificate, on both ends of its connections, without a restart or a lost request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from cryptography import x509

from mesh.identity import ca, files, rotation
from mesh.identity.ca import CertificateAuthority, Identity, read
from mesh.identity.tests.lab import FOOD, NUTRITION, Mesh, client_context, connect, get, running, until


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running() as mesh:
        yield mesh


async def test_a_renewed_certificate_is_used_by_new_connections_and_no_request_is_lost(mesh: Mesh) -> None:
    done = asyncio.Event()
    answered = {"new": 0, "kept": 0}

    async def load(kind: str) -> None:
        """Fails on the first request that is not answered 200."""
        async with contextlib.AsyncExitStack() as stack:
            kept = await stack.enter_async_context(
                connect(mesh.run / "server.sock", client_context(read(mesh.nutrition.folder)))
            )
            while not done.is_set():
                if kind == "kept":
                    assert (await get(*kept))[0] == 200
                else:
                    await mesh.presented()
                answered[kind] += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(load("new"))
        group.create_task(load("kept"))
        for _ in range(10):
            food, nutrition = mesh.authority.issue("food", FOOD), mesh.authority.issue("nutrition", NUTRITION)
            assert food.serial != mesh.food.serial

            async def taken(food: Identity = food, nutrition: Identity = nutrition) -> bool:
                return await mesh.served() == food.serial and await mesh.presented() == nutrition.serial

            await until(taken)
        done.set()
    assert min(answered.values()) >= 10


async def test_certificates_renewed_by_themselves_reach_a_running_proxy(mesh: Mesh) -> None:
    brief = CertificateAuthority(mesh.run / "identity", lifetime=timedelta(seconds=5))
    first = brief.issue("food", FOOD)
    renewals: list[Identity] = []
    rotation = asyncio.create_task(brief.rotate_forever({"food": FOOD}, renewals.append))
    try:

        async def taken() -> bool:
            return len(renewals) >= 2 and await mesh.served() == renewals[-1].serial

        await until(taken)
        assert first.serial not in {renewal.serial for renewal in renewals}
    finally:
        rotation.cancel()


async def test_a_client_without_a_certificate_of_this_mesh_gets_no_session(mesh: Mesh, tmp_path: Path) -> None:
    stranger = CertificateAuthority(tmp_path / "other").issue("nutrition", NUTRITION)
    for context in (client_context(stranger), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
        context.check_hostname = False
        context.load_verify_locations(mesh.food.folder / files.TRUST)
        # With TLS 1.3 the client learns of its refusal at its first read.
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            async with connect(mesh.run / "server.sock", context) as (reader, writer):
                await get(reader, writer)


def test_a_reader_never_sees_the_key_of_one_certificate_beside_another(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    folder = authority.issue("food", FOOD).folder
    reading = os.open(folder, os.O_RDONLY)
    try:
        before = os.readlink(files.DATA_LINK, dir_fd=reading)
        authority.issue("food", FOOD)
        after = os.readlink(files.DATA_LINK, dir_fd=reading)
    finally:
        os.close(reading)
    assert before != after
    assert [p.name for p in folder.iterdir() if p.is_dir() and not p.is_symlink()] == [after]


async def test_a_new_root_takes_over_under_load_and_the_old_ones_leaves_are_refused_afterwards(mesh: Mesh) -> None:
    stolen = mesh.run / "stolen"
    shutil.copytree(mesh.nutrition.folder, stolen)
    done, answered = asyncio.Event(), {"new": 0, "kept": 0}
    old = mesh.authority.root

    async def load() -> None:
        while not done.is_set():
            await mesh.presented()
            answered["new"] += 1

    async with connect(mesh.run / "server.sock", client_context(read(mesh.nutrition.folder))) as kept:

        async def load_kept() -> None:
            while not done.is_set():
                assert (await get(*kept))[0] == 200
                answered["kept"] += 1

        async with asyncio.TaskGroup() as group:
            group.create_task(load())
            group.create_task(load_kept())
            for _ in range(2):
                await rotation.rotate_root(mesh.authority, mesh.lagging)
            done.set()
    assert min(answered.values()) >= 10
    assert await mesh.presented() == read(mesh.nutrition.folder).serial != mesh.nutrition.serial
    assert old.number not in {root.number for root in mesh.authority.roots}
    shutil.copy(mesh.food.folder / files.TRUST, stolen / "now.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(stolen / "now.pem")
    context.load_cert_chain(stolen / files.CERTIFICATE, stolen / files.KEY)
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        async with connect(mesh.run / "server.sock", context) as (reader, writer):
            await get(reader, writer)


@pytest.mark.parametrize("ended_at", [0, 1, 2])
async def test_a_root_rotation_that_ends_at_any_step_is_finished_by_the_next(tmp_path: Path, ended_at: int) -> None:
    """At each step every leaf verifies against every bundle, which is what no refused connection means."""
    authority = CertificateAuthority(tmp_path)
    for service, spiffe_id in (("food", FOOD), ("nutrition", NUTRITION)):
        authority.issue(service, spiffe_id)
    first, steps = authority.root, 0

    def each_trusts_each() -> None:
        for one in authority.issued():
            for other in authority.issued():
                assert _verifies(one, other)

    async def ends() -> list[str]:
        nonlocal steps
        each_trusts_each()
        if steps == ended_at:
            raise asyncio.CancelledError
        steps += 1
        return []

    with pytest.raises(asyncio.CancelledError):
        await rotation.rotate_root(authority, ends)
    CertificateAuthority(tmp_path).issue("food", FOOD)  # the runner renews meanwhile, and undoes nothing
    each_trusts_each()

    async def none() -> list[str]:
        return []

    if ended_at < 2:
        await rotation.rotate_root(CertificateAuthority(tmp_path), none)
    each_trusts_each()
    (root,) = authority.roots
    assert root.number == first.number + 1


async def test_of_two_root_rotations_at_once_the_second_is_refused(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    authority.issue("food", FOOD)
    refused = 0

    async def second() -> list[str]:
        nonlocal refused
        with pytest.raises(rotation.RotationError, match="another process"):
            await rotation.rotate_root(CertificateAuthority(tmp_path), second)
        refused += 1
        return []

    await rotation.rotate_root(authority, second)
    assert refused == 3
    assert authority.root.number == 2


async def test_a_proxy_that_does_not_take_the_new_root_keeps_the_old_one_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "TAKE_SECONDS", 0.05)
    monkeypatch.setattr(rotation, "POLL_SECONDS", 0.01)
    authority = CertificateAuthority(tmp_path)
    first = authority.issue("food", FOOD)

    async def food_lags() -> list[str]:
        return ["food-0"]

    with pytest.raises(rotation.RotationError, match="food-0"):
        await rotation.rotate_root(authority, food_lags)
    assert read(tmp_path / "food") == first
    assert len(authority.roots) == 2


class HalfAYearAgo(datetime):
    """The clock when the first root was made."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        """A little more than half of a root's life before now."""
        return datetime.now(tz) - ca.ROOT_LIFETIME * 0.51


async def test_the_runner_replaces_a_root_at_half_of_its_life_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(ca, "datetime", HalfAYearAgo)
    old = CertificateAuthority(tmp_path).root
    monkeypatch.setattr(ca, "datetime", datetime)
    authority = CertificateAuthority(tmp_path)
    assert authority.issue("food", FOOD).issuer == old.common_name

    async def none() -> list[str]:
        return []

    watching = asyncio.create_task(rotation.rotate_root_when_due(authority, none))
    try:
        async with asyncio.timeout(20):
            while authority.root.number == 1 or authority.rotating:
                await asyncio.sleep(0.02)
    finally:
        watching.cancel()
    (identity,) = authority.issued()
    assert identity.issuer == authority.root.common_name
    assert authority.root.number == old.number + 1


def _verifies(one: Identity, other: Identity) -> bool:
    leaf = x509.load_pem_x509_certificate((one.folder / files.CERTIFICATE).read_bytes())
    bundle = x509.load_pem_x509_certificates((other.folder / files.TRUST).read_bytes())
    issuer = next(root for root in bundle if root.subject == leaf.issuer)
    leaf.verify_directly_issued_by(issuer)
    return True
