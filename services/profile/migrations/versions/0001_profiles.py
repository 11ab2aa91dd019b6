"""The profiles, and which request made which."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes both tables."""
    op.create_table(
        "profile",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("sex", sa.SmallInteger, nullable=False),
        sa.Column("birth_date", sa.Date),
        sa.Column("height_cm", sa.Double),
        sa.Column("weight_kg", sa.Double),
        sa.Column("activity_level", sa.SmallInteger, nullable=False),
        sa.Column("goals", pg.ARRAY(sa.SmallInteger), nullable=False),
        sa.Column("allergies", pg.ARRAY(sa.Text), nullable=False),
        sa.Column("conditions", pg.ARRAY(sa.Text), nullable=False),
        sa.Column("medications", pg.ARRAY(sa.Text), nullable=False),
        sa.Column("diet", sa.SmallInteger, nullable=False),
    )
    op.create_index("profile_by_owner", "profile", ["owner", "create_time", "id"])
    op.create_table(
        "create_request",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Uuid, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("profile_id", sa.Text, nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Drops both tables."""
    op.drop_table("create_request")
    op.drop_table("profile")
