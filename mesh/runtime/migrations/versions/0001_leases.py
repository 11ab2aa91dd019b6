"""Who holds which lock, and the newest token of each lock of elsewhere that was seen here."""

from alembic import op

revision = "leases_0001"
down_revision = None

STATEMENTS = (
    # Of all locks together, so that a row may be forgotten and its lock's tokens still rise.
    "CREATE SEQUENCE runtime_lease_token",
    # Who checks a token holds FOR KEY SHARE, which a change of a key waits for: the token is one, the time is not. So
    # a lease is renewed while its holder is in a transaction, and taken over only when that is over.
    """
    CREATE TABLE runtime_lease (
      name text COLLATE "C" NOT NULL,
      place integer NOT NULL,                          -- of a semaphore; a lock has place 0 alone
      holder text NOT NULL,
      token bigint NOT NULL UNIQUE,                    -- another one each time it is taken, and higher
      expire_time timestamptz NOT NULL,                -- by the clock of this database
      PRIMARY KEY (name, place)
    )
    """,
    "CREATE INDEX runtime_lease_by_time ON runtime_lease (expire_time)",
    """
    CREATE TABLE runtime_fence (
      name text COLLATE "C" PRIMARY KEY,
      token bigint NOT NULL
    )
    """,
)


def upgrade() -> None:
    """Makes the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
