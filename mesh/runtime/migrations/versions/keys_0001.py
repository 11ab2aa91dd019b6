"""The data keys of users, each encrypted by a key that is not in the database: see `mesh.runtime.crypto`."""

from alembic import op

revision = "keys_0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE runtime_data_key (
      owner text COLLATE "C" PRIMARY KEY,              -- the user; '' for the service itself
      id bytea NOT NULL,                               -- stands before all that it has encrypted
      kek text COLLATE "C" NOT NULL,                   -- the key that it is encrypted by
      wrapped bytea NOT NULL,
      create_time timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX runtime_data_key_by_kek ON runtime_data_key (kek)",
)


def upgrade() -> None:
    """Makes the table."""
    for statement in STATEMENTS:
        op.execute(statement)
