"""ProfileService on a real channel and a real PostgreSQL."""

import asyncio
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2
from google.type.date_pb2 import Date
from nourish.profile.v1 import profile_pb2 as pb
from nourish.profile.v1.profile_pb2 import ActivityLevel, Diet, Goal, Profile, Sex
from nourish.profile.v1.profile_pb2_grpc import ProfileServiceStub
from sqlalchemy.dialects import postgresql

from mesh.runtime.db import Rows, acting_for, database, housekeeping
from mesh.runtime.testing import as_user, serve_in_memory, stopped_clock
from services.profile import store
from services.profile.service import ProfileService

MIGRATIONS = Path(store.__file__).parent / "migrations"
ALICE = as_user("alice", "profile.read", "profile.write")
BOB = as_user("bob", "profile.read", "profile.write")


@pytest.fixture
def clock():
    with stopped_clock(datetime(2026, 11, 22, 12, tzinfo=UTC)) as stopped:
        yield stopped


@pytest_asyncio.fixture
async def db(postgres_url, keys):
    async with database(MIGRATIONS, url=postgres_url, pool=5, keys=keys) as opened:
        yield opened


@pytest_asyncio.fixture
async def stub(db, clock):
    async with serve_in_memory(ProfileService(store.ProfileStore(db))) as channel:
        yield ProfileServiceStub(channel)


@asynccontextmanager
async def refused(code, reason):
    """The block fails with this code and reason; gives a list that then holds the ErrorInfo and the message."""
    found = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield found
    assert caught.value.code() == code
    (raw,) = (value for key, value in caught.value.trailing_metadata() if key == "grpc-status-details-bin")
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(raw).details[0].Unpack(info)
    assert info.reason == reason
    found.extend([info, caught.value.details()])


def full():
    return Profile(
        display_name="Me",
        sex=Sex.SEX_FEMALE,
        birth_date=Date(year=1990, month=5, day=17),
        height_cm=165,
        weight_kg=60.5,
        activity_level=ActivityLevel.ACTIVITY_LEVEL_LIGHT,
        goals=[Goal.GOAL_BUILD_MUSCLE, Goal.GOAL_GAIN_WEIGHT],
        allergies=["peanuts", "crème fraîche"],
        conditions=["asthma"],
        medications=["warfarin"],
        diet=Diet.DIET_VEGAN,
    )


def create(stub, profile=None, request_id="", user=ALICE):
    return stub.CreateProfile(pb.CreateProfileRequest(profile=profile or full(), request_id=request_id), metadata=user)


def get(stub, name, user=ALICE):
    return stub.GetProfile(pb.GetProfileRequest(name=name), metadata=user)


def update(stub, profile, *paths, user=ALICE):
    mask = FieldMask(paths=paths) if paths else None
    return stub.UpdateProfile(pb.UpdateProfileRequest(profile=profile, update_mask=mask), metadata=user)


async def count(db):
    async with db.connection(Rows.EVERYONES) as connection:
        counted = sa.select(sa.func.count()).select_from(store.profile_table).where(sa.text("delete_time IS NULL"))
        return (await connection.execute(counted)).scalar_one()


async def test_every_field_comes_back_as_it_was_sent(stub, clock):
    made = await create(stub)
    assert made.name.startswith("profiles/")
    assert made.create_time.ToDatetime(UTC) == made.update_time.ToDatetime(UTC) == clock.now
    sent = full()
    for name in ("name", "etag"):
        setattr(sent, name, getattr(made, name))
    sent.create_time.CopyFrom(made.create_time)
    sent.update_time.CopyFrom(made.update_time)
    assert made == sent
    assert await get(stub, made.name) == made


async def test_an_empty_profile_comes_back_without_the_fields_that_were_not_set(stub):
    made = await create(stub, Profile(display_name="x"))
    read = await get(stub, made.name)
    assert {field.name for field, _ in read.ListFields()} == {
        "name",
        "display_name",
        "etag",
        "create_time",
        "update_time",
    }


async def test_what_the_service_sets_is_not_taken_from_the_client(stub, clock):
    forged = Profile(name="profiles/mine", etag="99", create_time={"seconds": 1})
    made = await create(stub, forged)
    assert made.name != "profiles/mine"
    assert made.etag != "99"
    assert made.create_time.ToDatetime(UTC) == clock.now


async def test_another_users_profile_does_not_exist_for_any_method(stub):
    made = await create(stub)
    calls = [
        lambda: get(stub, made.name, user=BOB),
        lambda: update(stub, Profile(name=made.name, weight_kg=99), user=BOB),
        lambda: stub.DeleteProfile(pb.DeleteProfileRequest(name=made.name), metadata=BOB),
        lambda: stub.GetTargets(pb.GetTargetsRequest(name=f"{made.name}/targets"), metadata=BOB),
    ]
    for call in calls:
        async with refused(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"):
            await call()
    assert not (await stub.ListProfiles(pb.ListProfilesRequest(), metadata=BOB)).profiles
    assert await get(stub, made.name) == made


async def test_without_a_user_nothing_answers(stub):
    async with refused(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await stub.ListProfiles(pb.ListProfilesRequest())


async def test_reading_does_not_entitle_to_writing(stub):
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"):
        await create(stub, user=as_user("alice", "profile.read"))


async def test_a_create_repeated_with_its_request_id_makes_one_profile(stub, db):
    request_id = str(uuid.uuid4())
    first = await create(stub, request_id=request_id)
    assert await create(stub, request_id=request_id.upper()) == first
    assert await count(db) == 1


async def test_creates_with_one_request_id_at_the_same_time_make_one_profile(stub, db):
    request_id = str(uuid.uuid4())
    made = await asyncio.gather(*(create(stub, request_id=request_id) for _ in range(8)))
    assert {profile.name for profile in made} == {made[0].name}
    assert await count(db) == 1


async def test_a_late_repeat_does_not_bring_a_deleted_profile_back(stub, db):
    request_id = str(uuid.uuid4())
    made = await create(stub, request_id=request_id)
    await stub.DeleteProfile(pb.DeleteProfileRequest(name=made.name), metadata=ALICE)
    assert await create(stub, request_id=request_id) == made
    assert await count(db) == 0


async def test_an_update_changes_what_the_mask_names_and_the_etag(stub, clock):
    made = await create(stub)
    clock.now += timedelta(hours=1)
    changed = await update(stub, Profile(name=made.name, weight_kg=59, display_name="no"), "weight_kg", "allergies")
    assert (changed.weight_kg, changed.display_name, list(changed.allergies)) == (59, "Me", [])
    assert changed.etag != made.etag
    assert changed.create_time == made.create_time
    assert changed.update_time.ToDatetime(UTC) == clock.now
    assert await get(stub, made.name) == changed


async def test_an_update_with_a_star_replaces_everything(stub):
    made = await create(stub)
    changed = await update(stub, Profile(name=made.name, diet=Diet.DIET_HALAL), "*")
    assert {field.name for field, _ in changed.ListFields()} == {"name", "diet", "etag", "create_time", "update_time"}


async def test_an_update_with_an_old_etag_is_refused_and_changes_nothing(stub):
    made = await create(stub)
    second = await update(stub, Profile(name=made.name, weight_kg=61))
    async with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        await update(stub, Profile(name=made.name, etag=made.etag, weight_kg=62))
    assert await get(stub, made.name) == second


async def test_a_retry_of_an_update_that_took_effect_succeeds(stub):
    """The contract calls UpdateProfile IDEMPOTENT: a lost answer is asked for again, with the etag of before."""
    made = await create(stub)
    again = Profile(name=made.name, etag=made.etag, weight_kg=61)
    assert await update(stub, again) == await update(stub, again)


async def test_of_two_updates_at_once_with_one_etag_one_wins(stub):
    made = await create(stub)
    updates = [update(stub, Profile(name=made.name, etag=made.etag, weight_kg=50 + n)) for n in range(6)]
    results = await asyncio.gather(*updates, return_exceptions=True)
    won = [r for r in results if isinstance(r, Profile)]
    assert len(won) == 1
    assert {r.code() for r in results if r not in won} == {grpc.StatusCode.ABORTED}
    assert await get(stub, made.name) == won[0]


async def test_updates_of_different_fields_at_once_lose_nothing(stub):
    made = await create(stub)
    changes = [{"weight_kg": 66.0}, {"height_cm": 166.0}, {"display_name": "both"}]
    await asyncio.gather(*(update(stub, Profile(name=made.name, **change)) for change in changes))
    read = await get(stub, made.name)
    assert (read.weight_kg, read.height_cm, read.display_name) == (66, 166, "both")


async def test_a_mask_that_names_no_field_is_refused(stub):
    made = await create(stub)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as found:
        await update(stub, Profile(name=made.name), "weight")
    assert "'weight'" in found[1]


async def test_a_part_of_a_date_that_makes_no_day_is_refused(stub):
    """31 May, of which the month alone becomes February."""
    made = await create(stub, Profile(birth_date=Date(year=1990, month=5, day=31)))
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as found:
        await update(stub, Profile(name=made.name, birth_date=Date(year=1990, month=2, day=1)), "birth_date.month")
    assert "1990-02-31" in found[1]
    assert await get(stub, made.name) == made


@pytest.mark.parametrize("born", [(2023, 2, 29), (2026, 11, 22), (1905, 11, 21)])
async def test_an_impossible_birth_date_is_refused_by_create_and_update(stub, born):
    profile = Profile(birth_date=Date(year=born[0], month=born[1], day=born[2]))
    made = await create(stub)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT") as found:
        await create(stub, profile)
    assert "birth_date" in found[1]
    profile.name = made.name
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        await update(stub, profile)


async def test_the_limits_of_the_contract_hold(stub):
    for bad in (Profile(weight_kg=1), Profile(height_cm=300), Profile(goals=[Goal.GOAL_UNSPECIFIED])):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
            await create(stub, bad)


async def test_delete_minds_the_etag_and_says_when_there_is_nothing(stub):
    made = await create(stub)
    async with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        await stub.DeleteProfile(pb.DeleteProfileRequest(name=made.name, etag="0"), metadata=ALICE)
    await stub.DeleteProfile(pb.DeleteProfileRequest(name=made.name, etag=made.etag), metadata=ALICE)
    async with refused(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"):
        await stub.DeleteProfile(pb.DeleteProfileRequest(name=made.name), metadata=ALICE)
    await stub.DeleteProfile(pb.DeleteProfileRequest(name=made.name, allow_missing=True), metadata=ALICE)


async def test_pages_go_oldest_first_and_hold_each_profile_once(stub, clock):
    made = []
    for n in range(7):
        made.append((await create(stub, Profile(display_name=str(n)))).name)
        clock.now += timedelta(seconds=n % 2)  # some were made at one instant: the id decides between these
    names, token, sizes = [], "", []
    while True:
        page = await stub.ListProfiles(pb.ListProfilesRequest(page_size=3, page_token=token), metadata=ALICE)
        names += [p.name for p in page.profiles]
        sizes.append(len(page.profiles))
        token = page.next_page_token
        if not token:
            break
    assert sizes == [3, 3, 1]
    assert sorted(names) == sorted(made)
    assert names[-1] == made[-1]
    assert {*names[:2]} == {*made[:2]}


async def test_a_page_token_is_good_for_its_user_only_and_cannot_be_forged(stub):
    for n in range(2):
        await create(stub, Profile(display_name=str(n)))
    page = await stub.ListProfiles(pb.ListProfilesRequest(page_size=1), metadata=ALICE)
    for token, user in ((page.next_page_token, BOB), (page.next_page_token[:-2] + "AA", ALICE), ("x", ALICE)):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
            await stub.ListProfiles(pb.ListProfilesRequest(page_size=1, page_token=token), metadata=user)


async def test_the_last_of_many_pages_reads_no_more_than_the_first(db):
    """Counted in blocks, which no other load on the machine changes."""
    many = sa.text(
        "INSERT INTO profile (id, owner, revision, create_time, update_time, activity_level, goals, diet, sensitive)"
        " SELECT 'p' || n, 'alice', 1, '2026-01-01'::timestamptz + n * interval '1 s', now(), 0, '{}', 0, ''"
        " FROM generate_series(1, 20000) n"
    )
    blocks, found = [], []
    async with acting_for("alice"), db.connection() as connection:
        await connection.execute(many)
        await connection.execute(sa.text("ANALYZE profile"))
        for seconds in (None, 19_990):
            after = seconds and (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds), "p19990")
            text = store.page_statement(after, 3).compile(
                dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}
            )
            plan = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {text}")
            top = plan.scalar_one()[0]["Plan"]
            found.append(top["Actual Rows"])
            blocks.append(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
    assert found == [3, 3]
    assert max(blocks) < 12
    assert blocks[1] <= blocks[0] + 2


async def test_targets_follow_the_profile_and_the_clock(stub, clock):
    """10 x 60.5 + 6.25 x 165 - 5 x 36 - 161 = 1295.25 kcal; a year later 5 less."""
    made = await create(stub)
    request = pb.GetTargetsRequest(name=f"{made.name}/targets")
    now = await stub.GetTargets(request, metadata=ALICE)
    assert (now.name, now.age_years) == (request.name, 36)
    assert now.bmr_kcal == pytest.approx(1295.25, abs=0.06)
    clock.now += timedelta(days=365)
    later = await stub.GetTargets(request, metadata=ALICE)
    assert later.age_years == 37
    assert later.bmr_kcal == pytest.approx(1290.25, abs=0.06)


async def test_targets_of_an_incomplete_profile_name_what_is_missing(stub):
    made = await create(stub, Profile(sex=Sex.SEX_MALE, height_cm=180))
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "FAILED_PRECONDITION") as found:
        await stub.GetTargets(pb.GetTargetsRequest(name=f"{made.name}/targets"), metadata=ALICE)
    assert dict(found[0].metadata) == {"name": made.name, "missing": "birth_date,weight_kg"}
    assert "birth_date, weight_kg" in found[1]


async def test_targets_of_a_child_are_refused(stub):
    child = full()
    child.birth_date.CopyFrom(Date(year=2015, month=1, day=1))
    made = await create(stub, child)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "FAILED_PRECONDITION") as found:
        await stub.GetTargets(pb.GetTargetsRequest(name=f"{made.name}/targets"), metadata=ALICE)
    assert "18 years" in found[1]


async def test_the_migrations_make_the_tables_that_the_store_uses(db):
    def differences(connection):
        def ours(name, kind, parents):
            return kind != "table" or name in store.metadata.tables

        context = MigrationContext.configure(connection, opts={"include_name": ours, "compare_type": True})
        return compare_metadata(context, store.metadata)

    async with db.connection() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_query_that_forgets_its_condition_sees_the_users_rows_alone(stub, db):
    """There is no WHERE in these, whoever wrote them."""
    hers, his = await create(stub), await create(stub, user=BOB)
    for user, name in (("alice", hers.name), ("bob", his.name)):
        async with acting_for(user), db.transaction() as connection:
            assert await everything(connection) == [name.removeprefix("profiles/")]
            changed = await connection.execute(store.profile_table.update().values(revision=7))
            assert changed.rowcount == 1
    async with db.connection() as connection:
        assert await everything(connection) == []
    async with db.connection(Rows.EVERYONES) as connection:
        assert len(await everything(connection)) == 2


async def everything(connection):
    return (await connection.execute(sa.select(store.profile_table.c.id))).scalars().all()


async def test_nobody_writes_a_row_for_another_user_or_for_none(db):
    values = {"id": "x", "revision": 1, "create_time": sa.func.now(), "update_time": sa.func.now(), "diet": 0}
    values |= {"activity_level": 0, "goals": [], "sensitive": b""}
    for owner in ({"owner": "bob"}, {"owner": ""}):
        with pytest.raises(sa.exc.DBAPIError, match="row-level security"):
            async with acting_for("alice"), db.transaction() as connection:
                await connection.execute(store.profile_table.insert().values({**values, **owner}))
    with pytest.raises(sa.exc.DBAPIError, match=r"null value|row-level security"):
        async with db.transaction() as connection:
            await connection.execute(store.profile_table.insert().values(values))


async def test_a_deleted_profile_is_gone_for_every_method_and_comes_back_as_it_was(stub, clock):
    made = await create(stub)
    await stub.DeleteProfile(pb.DeleteProfileRequest(name=made.name), metadata=ALICE)
    for call in (
        lambda: get(stub, made.name),
        lambda: update(stub, Profile(name=made.name, weight_kg=99)),
        lambda: stub.DeleteProfile(pb.DeleteProfileRequest(name=made.name), metadata=ALICE),
        lambda: stub.GetTargets(pb.GetTargetsRequest(name=f"{made.name}/targets"), metadata=ALICE),
        lambda: undelete(stub, made.name, user=BOB),
    ):
        async with refused(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"):
            await call()
    assert not (await stub.ListProfiles(pb.ListProfilesRequest(), metadata=ALICE)).profiles
    (shown,) = (await stub.ListProfiles(pb.ListProfilesRequest(show_deleted=True), metadata=ALICE)).profiles
    assert shown.delete_time.ToDatetime(UTC) == clock.now
    assert shown.expire_time.ToDatetime(UTC) == clock.now + timedelta(days=30)
    assert not (await stub.ListProfiles(pb.ListProfilesRequest(show_deleted=True), metadata=BOB)).profiles
    async with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        await undelete(stub, made.name, made.etag)
    back = await undelete(stub, made.name, shown.etag)
    assert await undelete(stub, made.name, shown.etag) == back  # a retry does not fail on its own first attempt
    made.etag = back.etag
    assert back == await get(stub, made.name) == made


async def test_a_deleted_profile_goes_for_good_after_its_time_and_no_other(stub, db, clock):
    made = [await create(stub) for _ in range(3)]
    for profile in made[:2]:
        await stub.DeleteProfile(pb.DeleteProfileRequest(name=profile.name), metadata=ALICE)
    clock.now += timedelta(days=30)
    async with refused(grpc.StatusCode.NOT_FOUND, "NOT_FOUND"):
        await undelete(stub, made[0].name)
    expired = store.profile_table.update().where(store.profile_table.c.id == made[0].name.removeprefix("profiles/"))
    async with db.transaction(Rows.EVERYONES) as connection:
        await connection.execute(expired.values(expire_time=sa.text("now() - interval '1 s'")))
    await housekeeping.once(db)
    async with db.connection(Rows.EVERYONES) as connection:
        assert sorted(await everything(connection)) == sorted(p.name.removeprefix("profiles/") for p in made[1:])


def undelete(stub, name, etag="", user=ALICE):
    return stub.UndeleteProfile(pb.UndeleteProfileRequest(name=name, etag=etag), metadata=user)
