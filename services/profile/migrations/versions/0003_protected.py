"""Profiles are their owners' alone, their sensitive fields are encrypted, and they are deleted softly.

The table is made anew: columns that are merely dropped stay on the disk in the open.
"""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from google.type.date_pb2 import Date
from nourish.profile.v1.profile_pb2 import Profile

from mesh.runtime.db import migrating

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    "DROP INDEX profile_by_owner",
    "ALTER TABLE profile RENAME TO profile_in_the_open",
    "ALTER INDEX profile_pkey RENAME TO profile_in_the_open_pkey",
    """
    CREATE TABLE profile (
      id text COLLATE "C" PRIMARY KEY,
      owner text COLLATE "C" NOT NULL,
      revision bigint NOT NULL,
      create_time timestamptz NOT NULL,
      update_time timestamptz NOT NULL,
      delete_time timestamptz,
      expire_time timestamptz,
      activity_level smallint NOT NULL,
      goals smallint[] NOT NULL,
      diet smallint NOT NULL,
      sensitive bytea NOT NULL                         -- the other fields of the contract, encrypted
    )
    """,
)
KEPT = ("id", "owner", "revision", "create_time", "update_time", "activity_level", "goals", "diet")
SENSITIVE = ("display_name", "sex", "height_cm", "weight_kg", "allergies", "conditions", "medications")
BATCH = 500


def upgrade() -> None:
    """Makes the new table, moves the profiles over, drops the old."""
    for statement in STATEMENTS:
        op.execute(statement)
    connection = op.get_bind()
    into = sa.table("profile", *(sa.column(name) for name in (*KEPT, "sensitive")))
    for rows in _batches(connection):
        connection.execute(into.insert(), rows)
    op.execute("DROP TABLE profile_in_the_open")
    op.execute("CREATE INDEX profile_by_owner ON profile (owner, create_time, id)")
    migrating.protect("profile", soft_delete=True)


def _batches(connection: sa.Connection) -> Iterator[list[dict[str, Any]]]:
    keys = migrating.keys()
    query = sa.text("SELECT * FROM profile_in_the_open WHERE id > :after ORDER BY id LIMIT :batch")
    after = ""
    while found := connection.execute(query, {"after": after, "batch": BATCH}).all():
        moved = []
        for row in found:
            sealed = keys.writing_sync(connection, row.owner).seal_fields(_profile(row), f"profile.sensitive/{row.id}")
            moved.append({**{name: row._mapping[name] for name in KEPT}, "sensitive": sealed})
        yield moved
        after = found[-1].id


def _profile(row: sa.Row[Any]) -> Profile:
    fields = {name: value for name in SENSITIVE if (value := row._mapping[name]) is not None}
    profile = Profile(**fields)
    if (born := row.birth_date) is not None:
        profile.birth_date.CopyFrom(Date(year=born.year, month=born.month, day=born.day))
    return profile
