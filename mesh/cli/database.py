"""The database of a service, for the verbs that look into it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from mesh.cli.failure import Exit, Failure
from mesh.cli.place import paths, state

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


def asked(service: str, question: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Asks the service's database, in one transaction.

    Raises:
        Failure: the mesh does not run, or its database does not answer.
    """
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import create_async_engine

    url = _url(service)

    async def ask() -> T:
        async with create_async_engine(url, poolclass=sa.NullPool).begin() as connection:
            return await question(connection)

    try:
        return asyncio.run(ask())
    except (OSError, sa.exc.DBAPIError) as error:
        raise Failure(f"the database of {service} does not answer: {error}", Exit.NOT_RUNNING) from error


def _url(service: str) -> str:
    from mesh import values
    from mesh.cli.place import read_values
    from mesh.local.postgres import Postgres
    from mesh.topology import did_you_mean

    state()
    topology = values.load(read_values())
    found = topology.services.get(service)
    if found is None or not found.database:
        with_one = [name for name, s in topology.services.items() if s.database]
        hint = did_you_mean(service, with_one)
        raise Failure(f"there is no service {service!r} with a database{hint}", Exit.USAGE)
    if address := topology.database.address:
        return f"postgresql+asyncpg://{service}@{address}/{service}"
    url = Postgres(paths().home, paths().postgres_sockets).url(service)
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)
