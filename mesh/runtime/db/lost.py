"""One exception for a server that cannot be reached, whatever the driver says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

LOST = "the database cannot be reached"
_NOT_SERVING = ("57P01", "57P02", "57P03")  # the server ends, has crashed, or starts


@contextmanager
def told_as_lost() -> Iterator[None]:
    """Says by one built-in exception that the server is gone, which `errors` makes UNAVAILABLE."""
    try:
        yield
    except sa.exc.TimeoutError as error:  # every pooled connection is busy for as long as the pool waits
        raise ConnectionError("no database connection is free") from error
    except FileNotFoundError as error:
        if error.filename is not None:  # a file; without a name it is the socket of a server that starts again
            raise
        raise ConnectionError(LOST) from error
    except sa.exc.DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", ""))
        gone = error.connection_invalidated or state.startswith("08") or state in _NOT_SERVING
        if gone or isinstance(error, sa.exc.InterfaceError | sa.exc.OperationalError):
            raise ConnectionError(LOST) from error
        raise
