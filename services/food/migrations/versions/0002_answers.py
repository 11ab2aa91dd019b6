"""The creations already answered: the runtime keeps those now, for every method."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Drops the table."""
    op.execute("DROP TABLE food_creation")
