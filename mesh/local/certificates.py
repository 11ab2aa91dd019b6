"""Whether the proxies that run here use the certificates that lie in their folders."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from mesh.admin import Admin, AdminError, NobodyListensError
from mesh.identity.rotation import uses
from mesh.local.paths import Paths


async def lagging(paths: Paths) -> list[str]:
    """The instances whose proxy runs and does not use yet what lies in its folder, or does not say what it uses.

    A proxy runs if somebody listens on its admin socket: the runner may have died without it.
    """
    sockets = sorted(paths.run.glob("*/admin.sock"))
    late = await asyncio.gather(*(_late(paths, socket) for socket in sockets))
    return [socket.parent.name for socket, is_late in zip(sockets, late, strict=True) if is_late]


async def _late(paths: Paths, socket: Path) -> bool:
    admin = Admin(socket)
    try:
        certs = await admin.get("/certs")
        service = json.loads(await admin.get("/server_info"))["node"]["cluster"]
    except NobodyListensError:
        return False
    except AdminError:
        return True
    return not uses(certs, paths.identity / service)
