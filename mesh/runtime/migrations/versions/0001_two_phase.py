"""The log of two-phase commits: what was decided, for as long as a participant may ask."""

from alembic import op

revision = "two_phase_0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE runtime_decision (
      id text COLLATE "C" PRIMARY KEY,
      committed boolean NOT NULL,                      -- false keeps one that was given up from deciding late
      participants text[] NOT NULL,                    -- the other databases, by their names in the service
      create_time timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
)


def upgrade() -> None:
    """Makes the table."""
    for statement in STATEMENTS:
        op.execute(statement)
