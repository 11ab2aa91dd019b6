"""Users' own foods are a table of their own, in which each row is its owner's alone; a view shows both kinds as one.

They do not share a table: PostgreSQL uses no full-text index where a policy must be judged first.
"""

from alembic import op

from mesh.runtime.db import migrating

revision = "0003"
down_revision = "0002"

COLUMNS = (
    "id, owner, source, display_name, category, nutrients, portion_names, portion_grams, etag, plainness,"
    " create_time, update_time"
)
STATEMENTS = (
    "ALTER TABLE food RENAME TO usda_food",
    "CREATE TABLE own_food (LIKE usda_food INCLUDING DEFAULTS INCLUDING GENERATED)",
    f"INSERT INTO own_food ({COLUMNS}) SELECT {COLUMNS} FROM usda_food WHERE owner <> ''",  # noqa: S608 - constants
    "DELETE FROM usda_food WHERE owner <> ''",
    "ALTER TABLE own_food ALTER COLUMN owner DROP DEFAULT, ADD PRIMARY KEY (id)",
    "CREATE INDEX own_food_by_name ON own_food (owner, display_name, id)",
    # So that a query for one kind does not look at the other.
    "ALTER TABLE own_food ADD CONSTRAINT own_food_kind CHECK (source = 5)",
    "ALTER TABLE usda_food ADD CONSTRAINT usda_food_kind CHECK (source IN (1, 2, 3, 4) AND owner = '')",
    f"""
    CREATE VIEW food WITH (security_invoker = true) AS
      SELECT {COLUMNS}, terms FROM usda_food UNION ALL SELECT {COLUMNS}, terms FROM own_food
    """,  # noqa: S608 - constants
)


def upgrade() -> None:
    """Divides them."""
    for statement in STATEMENTS:
        op.execute(statement)
    migrating.protect("own_food")
