"""Update masks: which fields of a profile a change takes over. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from nourish.profile.v1.profile_pb2 import Profile

ALL = "*"
# What a person may set, in the order of the contract; the rest is the service's.
FIELDS = tuple(
    field.name
    for field in Profile.DESCRIPTOR.fields
    if field.name not in ("name", "etag", "create_time", "update_time")
)


def problems(paths: Sequence[str]) -> list[str]:
    """What is wrong with the paths of an update mask, a sentence each: not a field, or `*` beside others (AIP-134)."""
    if ALL in paths and len(paths) > 1:
        return ["`*` stands for all fields and must stand alone"]
    return [
        f"there is no field {path!r}; a mask names whole fields of the profile, such as weight_kg"
        for path in paths
        if path != ALL and path not in Profile.DESCRIPTOR.fields_by_name
    ]


def merge(stored: Profile, wanted: Profile, paths: Sequence[str]) -> Profile:
    """`stored` with the fields in `paths` as in `wanted`: all for `*`, those that are set for no path (AIP-134).

    Fields that only the service sets stay as stored, also when the mask names them (AIP-203).
    """
    there = {field.name: value for field, value in wanted.ListFields()}
    chosen = set(FIELDS).intersection(FIELDS if ALL in paths else paths or there)
    merged = {field.name: value for field, value in stored.ListFields() if field.name not in chosen}
    merged |= {name: value for name, value in there.items() if name in chosen}
    return Profile(**merged)
