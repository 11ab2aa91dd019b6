"""ProfileService: the methods of the contract, each for the verified user alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime

from google.protobuf import empty_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from nourish.error.v1.reason_pb2 import Reason
from nourish.profile.v1 import profile_pb2, profile_pb2_grpc
from nourish.profile.v1.profile_pb2 import Profile

from mesh.runtime import Context, clock, errors, etags, masks, pages
from services.profile import domain
from services.profile.store import ProfileStore

DEFAULT_PAGE_SIZE = 50


class ProfileService(profile_pb2_grpc.ProfileServiceServicer):
    """Serves the profiles in `store`."""

    def __init__(self, store: ProfileStore) -> None:
        self._store = store

    async def GetProfile(self, request: profile_pb2.GetProfileRequest, context: Context) -> Profile:
        """Returns one of the user's profiles."""
        return await self._get(request.name)

    async def ListProfiles(
        self, request: profile_pb2.ListProfilesRequest, context: Context
    ) -> profile_pb2.ListProfilesResponse:
        """Returns a page of the user's profiles, oldest first."""
        size = request.page_size or DEFAULT_PAGE_SIZE
        after = None
        if request.page_token:
            cursor = pages.verify(request.page_token, scope=request)
            after = (datetime.fromisoformat(cursor["time"]), str(cursor["id"]))
        found = await self._store.page(after, size + 1, deleted=request.show_deleted)
        profiles, token = pages.cut(found, size, _cursor, scope=request)
        return profile_pb2.ListProfilesResponse(profiles=profiles, next_page_token=token)

    async def CreateProfile(self, request: profile_pb2.CreateProfileRequest, context: Context) -> Profile:
        """Adds a profile for the user."""
        self._check_birth_date(request.profile)
        profile = masks.merged(Profile(), request.profile, FieldMask(paths=[masks.ALL]))
        return await self._store.create(profile, clock.now())

    async def UpdateProfile(self, request: profile_pb2.UpdateProfileRequest, context: Context) -> Profile:
        """Changes the fields in the mask, or those that are set."""

        def change(before: Profile) -> Profile:
            after = masks.merged(before, request.profile, request.update_mask)
            if after.birth_date != before.birth_date:
                self._check_birth_date(after)
            # A repeat of a change that is there already succeeds: a retry must not fail on its own first attempt.
            if after != before:
                etags.check(before, request.profile.etag)
            return after

        name = request.profile.name
        return _found(await self._store.update(_id_of(name), change, clock.now()), name)

    async def DeleteProfile(self, request: profile_pb2.DeleteProfileRequest, context: Context) -> empty_pb2.Empty:
        """Deletes one of the user's profiles."""
        there = await self._store.delete(_id_of(request.name), _seen(request.etag), clock.now())
        if not there and not request.allow_missing:
            raise errors.not_found(request.name)
        return empty_pb2.Empty()

    async def UndeleteProfile(self, request: profile_pb2.UndeleteProfileRequest, context: Context) -> Profile:
        """Brings one of the user's profiles back."""
        back = await self._store.undelete(_id_of(request.name), _seen(request.etag), clock.now())
        return _found(back, request.name)

    async def GetTargets(self, request: profile_pb2.GetTargetsRequest, context: Context) -> profile_pb2.Targets:
        """Computes the daily targets of one of the user's profiles."""
        profile = await self._get(request.name.removesuffix("/targets"))
        try:
            targets = domain.targets(profile, self._today())
        except domain.IncompleteError as error:
            raise errors.ServiceError(
                Reason.REASON_FAILED_PRECONDITION,
                str(error),
                metadata={"name": profile.name, "missing": ",".join(error.fields)},
            ) from None
        except domain.UnsupportedError as error:
            raise errors.failed_precondition(str(error)) from None
        targets.name = request.name
        return targets

    async def _get(self, name: str) -> Profile:
        return _found(await self._store.get(_id_of(name)), name)

    def _today(self) -> date:
        return clock.now().date()

    def _check_birth_date(self, profile: Profile) -> None:
        if profile.HasField("birth_date") and (problem := domain.birth_date_problem(profile.birth_date, self._today())):
            raise errors.invalid("profile.birth_date", problem)


def _id_of(name: str) -> str:
    return name.removeprefix("profiles/")


def _cursor(last: Profile) -> dict[str, str]:
    return {"time": last.create_time.ToDatetime(UTC).isoformat(), "id": _id_of(last.name)}


def _found(profile: Profile | None, name: str) -> Profile:
    if profile is None:
        raise errors.not_found(name)
    return profile


def _seen(etag: str) -> Callable[[Profile], None]:
    return lambda stored: etags.check(stored, etag)
