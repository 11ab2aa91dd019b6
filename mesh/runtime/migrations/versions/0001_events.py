"""Events that are published and not sent yet, and events that were handled."""

from alembic import op

revision = "events_0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE runtime_outbox (
      id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- for each key in the order of the transactions
      subject text NOT NULL,
      headers text NOT NULL,                              -- JSON
      payload bytea NOT NULL
    )
    """,
    """
    CREATE TABLE runtime_inbox (
      consumer text COLLATE "C" NOT NULL,                 -- who handled it
      event text COLLATE "C" NOT NULL,
      time timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (consumer, event)
    )
    """,
    "CREATE INDEX runtime_inbox_by_time ON runtime_inbox (time)",
)


def upgrade() -> None:
    """Makes the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
