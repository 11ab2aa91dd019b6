"""Whether the proxies that run here use the certificates that lie in their folders."""

from __future__ import annotations

import asyncio

from mesh.identity.rotation import uses
from mesh.local.envoy import Admin, AdminError
from mesh.local.events import InstanceState, read_state
from mesh.local.paths import Paths


async def lagging(paths: Paths) -> list[str]:
    """The instances whose proxy runs and does not use yet what lies in its folder, or does not say what it uses."""
    state = read_state(paths.state)
    running = [i for i in state.instances if i.proxy.pid is not None] if state else []
    late = await asyncio.gather(*(_late(paths, instance) for instance in running))
    return [instance.id for instance, is_late in zip(running, late, strict=True) if is_late]


async def _late(paths: Paths, instance: InstanceState) -> bool:
    try:
        certs = await Admin(paths.admin_socket(instance.id)).get("/certs")
    except AdminError:
        return True
    return not uses(certs, paths.identity / instance.service)
