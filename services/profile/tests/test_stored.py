"""What of a profile lies in the database: nothing sensitive in the open, on a real PostgreSQL."""

import asyncio
import uuid
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from google.type.date_pb2 import Date
from nourish.profile.v1 import profile_pb2 as pb
from nourish.profile.v1.profile_pb2 import ActivityLevel, Diet, Goal, Profile, Sex
from nourish.profile.v1.profile_pb2_grpc import ProfileServiceStub

from mesh.runtime.answers import digest
from mesh.runtime.crypto import KeyringError
from mesh.runtime.db import Rows, database, housekeeping
from mesh.runtime.testing import as_user, serve_in_memory
from services.profile import store
from services.profile.service import ProfileService

MIGRATIONS = Path(store.__file__).parent / "migrations"
ALICE, BOB = (as_user(user, "profile.read", "profile.write") for user in ("alice", "bob"))
FULL = Profile(
    display_name="Gwendolyn",
    sex=Sex.SEX_FEMALE,
    birth_date=Date(year=1990, month=5, day=17),
    height_cm=165.25,
    weight_kg=60.5,
    activity_level=ActivityLevel.ACTIVITY_LEVEL_LIGHT,
    goals=[Goal.GOAL_BUILD_MUSCLE],
    allergies=["peanuts"],
    conditions=["asthma", "diabetes"],
    medications=["warfarin"],
    diet=Diet.DIET_VEGAN,
)
WORDS = ("Gwendolyn", "1990-05-17", "165.25", "60.5", "peanuts", "asthma", "diabetes", "warfarin")


@pytest.fixture
def opened(postgres_url, keys):
    """Opens the database, with the keys in a folder."""
    return lambda folder=keys: database(MIGRATIONS, url=postgres_url, pool=5, keys=folder)


def serving(db):
    return serve_in_memory(ProfileService(store.ProfileStore(db)))


def create(channel, user=ALICE, request_id=""):
    request = pb.CreateProfileRequest(profile=FULL, request_id=request_id)
    return ProfileServiceStub(channel).CreateProfile(request, metadata=user)


def get(channel, name, user=ALICE):
    return ProfileServiceStub(channel).GetProfile(pb.GetProfileRequest(name=name), metadata=user)


async def whole(db):
    """All that the database holds, as text: bytes too."""
    found = []
    async with db.connection(Rows.EVERYONES) as connection:
        tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
        for table in (await connection.execute(sa.text(tables))).scalars().all():
            for row in await connection.execute(sa.text(f'SELECT * FROM "{table}"')):
                found += [v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in row]
    return "\n".join(found)


async def test_nothing_sensitive_is_in_the_open_in_the_profile_or_in_the_kept_answer(opened):
    id_ = str(uuid.uuid4())
    async with opened() as db, serving(db) as channel:
        made = await create(channel, request_id=id_)
        stored = await whole(db)
        assert not [word for word in WORDS if word in stored]
        assert "CreateProfile" in stored
        assert digest(pb.CreateProfileRequest(profile=FULL)).decode("latin-1") not in stored
        assert await create(channel, request_id=id_) == await get(channel, made.name) == made
        assert made.medications == ["warfarin"]


async def test_what_was_encrypted_for_one_row_is_not_shown_in_another(opened):
    async with opened() as db, serving(db) as channel:
        one, other, his = await create(channel), await create(channel), await create(channel, BOB)
        for source, target, user in ((one, other, ALICE), (one, his, BOB)):
            move = (
                "UPDATE profile SET sensitive = (SELECT sensitive FROM profile WHERE id = :source) WHERE id = :target"
            )
            ids = {"source": source.name[9:], "target": target.name[9:]}
            async with db.transaction(Rows.EVERYONES) as connection:
                await connection.execute(sa.text(move), ids)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await get(channel, target.name, user)
            assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert await get(channel, one.name) == one


async def test_profiles_of_the_old_schema_are_encrypted_and_none_is_lost(opened, postgres_url, tmp_path):
    """As the second revision left them; the third also leaves nothing of them in the open on the disk."""
    old = tmp_path / "old" / "versions"
    old.mkdir(parents=True)
    for name in ("0001_profiles.py", "0002_answers.py"):
        (old / name).write_text((MIGRATIONS / "versions" / name).read_text())
    async with database(old.parent, url=postgres_url) as db, db.transaction() as connection:
        await connection.execute(
            sa.text(
                "INSERT INTO profile SELECT 'p' || n, CASE n % 2 WHEN 0 THEN 'alice' ELSE 'bob' END, n, now(), now(),"
                " 'Gwendolyn', 1, '1990-05-17', 165.25, CASE n WHEN 7 THEN NULL ELSE 60.5 END, 2, '{4}', '{peanuts}',"
                " '{asthma,diabetes}', '{warfarin}', 4 FROM generate_series(1, 1203) n"
            )
        )
    async with opened() as db, serving(db) as channel:
        stored = await whole(db)
        assert not [word for word in WORDS if word in stored]
        for user, count in ((ALICE, 601), (BOB, 602)):
            names, token = [], ""
            while True:
                request = pb.ListProfilesRequest(page_size=500, page_token=token)
                page = await ProfileServiceStub(channel).ListProfiles(request, metadata=user)
                names += [profile.name for profile in page.profiles]
                if not (token := page.next_page_token):
                    break
            assert len(set(names)) == len(names) == count
        read = await get(channel, "profiles/p2")
        for name in ("name", "etag", "create_time", "update_time"):
            read.ClearField(name)
        assert read == FULL
        assert not (await get(channel, "profiles/p7", BOB)).HasField("weight_kg")


async def test_without_the_right_key_it_does_not_start_says_so_and_changes_nothing(opened, keys, tmp_path, add_key):
    async with opened() as db, serving(db) as channel:
        made = await create(channel)
    other = tmp_path / "other"
    add_key(other)
    for folder, problem in ((other, "not the key"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(KeyringError, match=problem):
            async with opened(folder):
                pass
    (other / "0001").rename(other / "0007")
    (other / "current").unlink()
    with pytest.raises(KeyringError, match="'0001', which is not in"):
        async with opened(other):
            pass
    async with opened() as db, serving(db) as channel:
        assert await get(channel, made.name) == made


async def test_without_any_key_it_does_not_serve(opened, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, problem in ((None, "NOURISH_KEYS_DIR is not set"), (empty, "there is no key")):
        async with opened(folder) as db:
            with pytest.raises(KeyringError, match=problem):
                async with serving(db):
                    pass


async def test_a_user_whose_key_is_erased_is_unreadable_and_others_are_not(opened):
    async with opened() as db, serving(db) as channel:
        hers, his = await create(channel), await create(channel, BOB)
        async with db.transaction() as connection:
            assert await db.keys.erase(connection, "alice")
        with pytest.raises(grpc.aio.AioRpcError):
            await get(channel, hers.name)
        assert await get(channel, his.name, BOB) == his
        again = await create(channel)  # with a new key
        assert await get(channel, again.name) == again
        with pytest.raises(grpc.aio.AioRpcError):
            await get(channel, hers.name)


async def test_a_new_key_takes_over_under_load_and_no_call_fails(opened, keys, monkeypatch, add_key):
    """Two processes' worth of databases, neither of which is told; then the old key's file may go."""
    monkeypatch.setattr("mesh.runtime.db.housekeeping.ROUND_SECONDS", 0.05)
    users = [as_user(f"u{n}", "profile.read", "profile.write") for n in range(30)]
    async with opened() as one, opened() as two, serving(one) as first, serving(two) as second:
        made = [await create(first, user) for user in users]
        calls = 0
        rotated = asyncio.Event()

        async def load(channel, number):
            nonlocal calls
            while not rotated.is_set():
                one_of = (calls + number) % len(users)
                assert await get(channel, made[one_of].name, users[one_of]) == made[one_of]
                await create(channel, as_user(f"new{calls % 50}", "profile.read", "profile.write"))
                calls += 1

        async with asyncio.TaskGroup() as group:
            for number, channel in enumerate((first, second)):
                group.create_task(load(channel, number))
            for _ in range(3):
                new = add_key(keys)
                await until_all_by(one, new)
            rotated.set()
        assert calls
        await housekeeping.once(one)  # of those that were made at that very moment
    for old in ("0001", "0002", "0003"):
        (keys / old).unlink()
    async with opened() as db, serving(db) as channel:
        assert await get(channel, made[0].name, users[0]) == made[0]


async def until_all_by(db, key):
    counted = sa.text("SELECT count(*) FROM runtime_data_key WHERE kek <> :key")
    async with asyncio.timeout(30):
        while True:
            async with db.connection() as connection:
                if not (await connection.execute(counted, {"key": key})).scalar_one():
                    return
            await asyncio.sleep(0.02)


async def test_a_rotation_that_is_cut_short_goes_on(opened, keys, monkeypatch, add_key):
    monkeypatch.setattr("mesh.runtime.crypto.datakeys.REWRAPPED_AT_ONCE", 2)
    async with opened() as db, serving(db) as channel:
        made = {n: await create(channel, as_user(f"u{n}", "profile.read", "profile.write")) for n in range(5)}
        add_key(keys)
        async with db.transaction() as connection:
            assert await db.keys.rewrap(connection) == 2
    async with opened() as db, serving(db) as channel:  # with both keys in use
        for n, profile in made.items():
            assert await get(channel, profile.name, as_user(f"u{n}", "profile.read")) == profile
        await housekeeping.once(db)
        await until_all_by(db, "0002")
