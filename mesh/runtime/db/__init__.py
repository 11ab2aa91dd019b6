"""A service's own PostgreSQL database: migrated before it serves, pooled, one transaction where one is asked for.

Rows of a protected table are seen by their owner alone, and deleted ones by nobody: see `rows`. What a migration calls
stands in `migrating`.
"""

from mesh.runtime.db.database import PUBLISHED, Database
from mesh.runtime.db.deletion import soft_delete
from mesh.runtime.db.opening import current, database, keys_of
from mesh.runtime.db.rows import Rows, acting_for, mine

__all__ = ["PUBLISHED", "Database", "Rows", "acting_for", "current", "database", "keys_of", "mine", "soft_delete"]
