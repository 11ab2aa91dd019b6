"""What the migrations of services call."""

from __future__ import annotations

from alembic import op

from mesh.runtime.crypto import DataKeys
from mesh.runtime.db.rows import protect as _protect


def protect(table: str, *, soft_delete: bool = False) -> None:
    """Makes each row of `table` its owner's alone; see `rows.protect`."""
    for statement in _protect(table, soft_delete=soft_delete):
        op.execute(statement)


def keys() -> DataKeys:
    """The data keys, to encrypt what a table held in the open."""
    found: DataKeys = op.get_context().config.attributes["keys"]  # type: ignore[union-attr]
    return found
