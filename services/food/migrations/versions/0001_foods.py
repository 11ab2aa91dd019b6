"""Foods, the record of the import, the words that names are made of, and the creations already answered.

The indexes on `food` are not here: they are built once the import has filled the table (see `store.INDEXES`).
"""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    # One text for names and queries: no accents, and no marks that the text parser would take for a path or a host.
    """
    CREATE FUNCTION food_plain(name text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
      translate(lower(name), 'àáâãäåçèéêëìíîïñòóôõöùúûüýÿ/-_.', 'aaaaaaceeeeiiiinooooouuuuyy    ')
    """,
    # USDA puts the thing before the first comma and its kind after ("Onions, red, raw"). Some names put a class first
    # ("Spices, cinnamon, ground", "Squash, winter, acorn, raw"): there the thing comes after the class.
    """
    CREATE FUNCTION food_head(plain text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
      CASE
        WHEN split_part(plain, ',', 1) IN (
          'alcoholic beverage', 'alcoholic beverages', 'babyfood', 'beverages', 'candies', 'cereals',
          'cereals ready to eat', 'crustaceans', 'fish', 'game meat', 'leavening agents', 'mollusks', 'nuts', 'seeds',
          'snacks', 'spices'
        ) THEN split_part(plain, ',', 2)
        WHEN plain LIKE ANY (ARRAY['squash, summer, %', 'squash, winter, %']) AND plain NOT LIKE '%, all varieties%'
          THEN split_part(plain, ',', 3)
        ELSE split_part(plain, ',', 1)
      END
    """,
    # The words of the thing have weight A, all words have weight B. What a label says is all the thing.
    """
    CREATE FUNCTION food_terms(name text, source smallint) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
      CASE
        WHEN source = 4 THEN setweight(to_tsvector('pg_catalog.english', food_plain(name)), 'A')
        ELSE setweight(to_tsvector('pg_catalog.english', food_head(food_plain(name))), 'A')
          || setweight(to_tsvector('pg_catalog.english', food_plain(name)), 'B')
      END
    """,
    """
    CREATE TABLE food (
      id text COLLATE "C" NOT NULL,
      owner text COLLATE "C" NOT NULL DEFAULT '',      -- '' for USDA
      source smallint NOT NULL,                        -- nourish.food.v1.Source
      display_name text COLLATE "C" NOT NULL,
      category text COLLATE "C" NOT NULL DEFAULT '',
      nutrients double precision[] NOT NULL,           -- of 100 g, by field number of nourish.type.v1.Nutrients
      portion_names text[] NOT NULL,
      portion_grams double precision[] NOT NULL,
      etag text NOT NULL,
      plainness real NOT NULL,
      create_time timestamptz NOT NULL DEFAULT now(),
      update_time timestamptz NOT NULL DEFAULT now(),
      terms tsvector GENERATED ALWAYS AS (food_terms(display_name, source)) STORED
    )
    """,
    """
    CREATE TABLE usda_import (
      single boolean PRIMARY KEY DEFAULT true CHECK (single),  -- one row at most
      data text NOT NULL,                              -- which file, read by which rules
      rows_read integer NOT NULL DEFAULT 0,
      foods integer NOT NULL DEFAULT 0,
      counts jsonb NOT NULL DEFAULT '{}',              -- rows left out and figures mended, by reason
      start_time timestamptz NOT NULL DEFAULT now(),
      finish_time timestamptz
    )
    """,
    """
    CREATE TABLE food_word (
      word text COLLATE "C" PRIMARY KEY,               -- a stem, or a word as generic foods spell it
      stem text COLLATE "C" NOT NULL,                  -- as in `food.terms`
      generic integer NOT NULL,                        -- generic foods that have the stem
      total integer NOT NULL
    )
    """,
    "CREATE INDEX food_word_trigrams ON food_word USING gist (word gist_trgm_ops)",
    """
    CREATE TABLE food_creation (
      owner text COLLATE "C" NOT NULL,
      request_id text COLLATE "C" NOT NULL,
      body bytea NOT NULL,                             -- hash of what was asked
      food bytea NOT NULL,                             -- what was answered
      create_time timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (owner, request_id)
    )
    """,
)


def upgrade() -> None:
    """Makes the schema."""
    for statement in STATEMENTS:
        op.get_bind().exec_driver_sql(statement)  # as it stands: `(?:` is no bind parameter
