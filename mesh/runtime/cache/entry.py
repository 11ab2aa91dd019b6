"""What a cache holds for one key."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.runtime.cache.failures import NotFound

ERROR_BYTES = 2000  # an error with its details, without its text


class Entry:
    """An encoded value, or that there is none.

    Attributes:
        payload: the value as bytes, which nobody can change, and whose size is known.
        missing: the error that says so, if there is none.
        fresh: until when it is given as it is, by the cache's clock.
        until: until when it is given while a newer one is loaded.
        scope: the scopes of the user for whom it was loaded.
        size: what it takes, with its key and the policy's lists.
    """

    __slots__ = ("fresh", "missing", "payload", "scope", "size", "until")

    def __init__(
        self, payload: bytes, fresh: float, until: float, scope: str = "", missing: NotFound | None = None
    ) -> None:
        self.payload = payload
        self.missing = missing
        self.fresh = fresh
        self.until = until
        self.scope = scope
        self.size = 0

    def own_size(self) -> int:
        """What it takes by itself."""
        missing = ERROR_BYTES + 4 * len(str(self.missing)) if self.missing is not None else 0
        return sys.getsizeof(self.payload) + missing
