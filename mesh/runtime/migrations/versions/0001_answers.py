"""What each request_id was answered.

Every table of the runtime is a line of revisions of its own, so that parts of the runtime do not wait for one another.
"""

from alembic import op

revision = "answers_0001"
down_revision = None

STATEMENTS = (
    """
    CREATE TABLE runtime_answer (
      owner text COLLATE "C" NOT NULL,                 -- for whom the call ran: "user:alice", "service:planner"
      method text COLLATE "C" NOT NULL,                -- "/nourish.food.v1.FoodService/CreateFood"
      request_id text COLLATE "C" NOT NULL,
      body bytea NOT NULL,                             -- hash of what was asked
      answer bytea,                                    -- the message; set before the transaction ends
      create_time timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (owner, method, request_id)
    )
    """,
    "CREATE INDEX runtime_answer_by_time ON runtime_answer (create_time)",
)


def upgrade() -> None:
    """Makes the table."""
    for statement in STATEMENTS:
        op.execute(statement)
