"""Which request made which profile: the runtime keeps that now, for every method."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Drops the table."""
    op.drop_table("create_request")


def downgrade() -> None:
    """Makes it again, empty."""
    op.create_table(
        "create_request",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Uuid, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("profile_id", sa.Text, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    )
