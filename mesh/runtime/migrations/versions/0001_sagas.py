"""The log of sagas: how far each is, forward or back. A saga is a job, and goes when its job does."""

from alembic import op

revision = "sagas_0001"
down_revision = None
depends_on = "jobs_0001"

STATEMENTS = (
    """
    CREATE TABLE runtime_saga (
      id text COLLATE "C" PRIMARY KEY REFERENCES runtime_job ON DELETE CASCADE,
      kind text COLLATE "C" NOT NULL,
      state text NOT NULL CHECK (state IN ('running', 'compensating', 'succeeded', 'compensated')),
      parked boolean NOT NULL DEFAULT false,           -- until a human has it tried again
      error bytea,                                     -- google.rpc.Status: why it was turned back
      detail text,                                     -- the same for whoever operates the service
      create_time timestamptz NOT NULL DEFAULT now(),
      update_time timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX runtime_saga_by_time ON runtime_saga (create_time, id)",
    """
    CREATE TABLE runtime_saga_step (
      saga text COLLATE "C" NOT NULL REFERENCES runtime_saga ON DELETE CASCADE,
      number integer NOT NULL,
      name text NOT NULL,
      state text NOT NULL CHECK (state IN ('doing', 'done', 'refused', 'undoing', 'undone')),
      tries integer NOT NULL,                          -- of what its state says
      response bytea,                                  -- what it answered, for the steps behind it
      detail text,                                     -- the last failure
      start_time timestamptz NOT NULL DEFAULT now(),
      update_time timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (saga, number)
    )
    """,
)


def upgrade() -> None:
    """Makes the tables."""
    for statement in STATEMENTS:
        op.execute(statement)
