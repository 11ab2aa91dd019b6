"""What a sidecar does, done in the process: for a service whose values say `dataPlane: proxyless`.

Its calls go over gRPC's own xDS client. grpc.aio has no xDS server, so the process serves by itself what its inbound
sidecar would have: mTLS from the same identity files, and the same rules from the same control plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from mesh.runtime.proxyless.guard import Guard
from mesh.runtime.proxyless.inbound import Bootstrap, Inbound
from mesh.runtime.settings import settings


@asynccontextmanager
async def guard() -> AsyncIterator[Guard]:
    """A guard that follows the rules of this process, once it has them."""
    inbound = Inbound(Bootstrap.load())
    following = asyncio.create_task(inbound.follow(), name="follow the rules")
    try:
        await inbound.known()
        yield Guard(inbound, settings().identity)
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
