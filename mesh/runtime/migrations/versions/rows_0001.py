"""For whom a connection works, as policies and statements ask it: see `mesh.runtime.db.rows`."""

from alembic import op

revision = "rows_0001"
down_revision = None

# One setting: "user:alice", "both:alice" (with what she deleted), "*" for everyone's, "" for nobody's.
STATEMENTS = (
    """
    CREATE FUNCTION runtime_user() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE RETURN
      nullif(substr(current_setting('nourish.rows', true), 6), '') COLLATE "C"
    """,
    """
    CREATE FUNCTION runtime_everyone() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE RETURN
      coalesce(current_setting('nourish.rows', true) = '*', false)
    """,
    """
    CREATE FUNCTION runtime_deleted_too() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE RETURN
      coalesce(left(current_setting('nourish.rows', true), 5) IN ('*', 'both:'), false)
    """,
)


def upgrade() -> None:
    """Makes the functions."""
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement)  # as it stands: `:alice` is no bind parameter
