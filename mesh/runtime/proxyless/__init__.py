"""What a sidecar does, done in the process: for a service whose values say `dataPlane: proxyless`.

Its calls go over gRPC's own xDS client. grpc.aio has no xDS server, so the process serves by itself what its inbound
sidecar would have: mTLS from the same identity files, and the same rules from the same control plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.runtime.environment import environment
from mesh.runtime.proxyless import credentials
from mesh.runtime.proxyless.guard import Guard
from mesh.runtime.proxyless.inbound import Bootstrap, Inbound


@asynccontextmanager
async def guard() -> AsyncIterator[Guard]:
    """A guard that follows the rules of this process, once it has them."""
    bootstrap, identity = Bootstrap.load(), environment().identity
    inbound = Inbound(bootstrap)
    work = (inbound.follow(), credentials.leave_word(identity, bootstrap.path.with_name(credentials.TAKEN)))
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await inbound.known()
        yield Guard(inbound, identity)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
