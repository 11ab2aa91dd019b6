"""Which exposures of flags were published: a digest of flag, variant and user each."""

from alembic import op

revision = "flags_0001"
down_revision = None


def upgrade() -> None:
    """Makes the table."""
    op.execute("CREATE TABLE runtime_exposure (id bytea PRIMARY KEY)")
