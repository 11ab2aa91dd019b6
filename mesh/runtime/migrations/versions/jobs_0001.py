"""The jobs of a service: what is to be done, how far it is, what came of it.

The queue's own tables, which say who works on what now, are made and upgraded by the library.
"""

from alembic import op

revision = "jobs_0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE runtime_job (
      id text COLLATE "C" PRIMARY KEY,
      kind text COLLATE "C" NOT NULL,                  -- "nourish.food.v1.ImportFoodsRequest"
      key text COLLATE "C" NOT NULL,                   -- of those of a kind with the same one runs; '' for none
      owner text COLLATE "C" NOT NULL,                 -- the user whose operation it is; '' for a job that nobody sees
      argument bytea NOT NULL,
      headers text NOT NULL,                           -- of the call that enqueued it, JSON
      priority integer NOT NULL,
      run_time timestamptz NOT NULL,                   -- not before
      state text NOT NULL CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
      attempt integer NOT NULL DEFAULT 0,              -- how often it was begun; who has an older number may not write
      failures integer NOT NULL DEFAULT 0,             -- how many of those failed, or died with their process
      cancel_requested boolean NOT NULL DEFAULT false,
      progress bytea,                                  -- google.protobuf.Any
      response bytea,                                  -- google.protobuf.Any
      error bytea,                                     -- google.rpc.Status
      detail text,                                     -- the last failure, for whoever operates the service
      create_time timestamptz NOT NULL DEFAULT now(),
      start_time timestamptz,
      update_time timestamptz NOT NULL DEFAULT now(),
      end_time timestamptz
    )
    """,
    "CREATE UNIQUE INDEX runtime_job_alone ON runtime_job (kind, key) WHERE state = 'running' AND key <> ''",
    "CREATE INDEX runtime_job_by_owner ON runtime_job (owner, create_time, id) WHERE owner <> ''",
    "CREATE INDEX runtime_job_by_state ON runtime_job (state, create_time, id)",
    "CREATE INDEX runtime_job_by_end ON runtime_job (end_time) WHERE end_time IS NOT NULL",
)


def upgrade() -> None:
    """Makes the table."""
    for statement in STATEMENTS:
        op.execute(statement)
