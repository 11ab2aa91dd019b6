"""Whether the proxies that run here, and the processes without one, use the certificates in their folders."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from mesh.admin import Admin, AdminError, NobodyListensError
from mesh.identity.files import DATA_LINK
from mesh.identity.rotation import uses
from mesh.local.paths import Paths

TAKEN_SECONDS = 4.0  # refresh_interval in envoy/proxyless.json, and patience with a busy machine


async def lagging(paths: Paths) -> list[str]:
    """The instances whose proxy runs and does not use yet what lies in its folder, or does not say what it uses.

    A proxy runs if somebody listens on its admin socket: the runner may have died without it. gRPC reads the files each
    second and tells nobody what it uses: a process without a proxy lags until they have lain there for a while.
    """
    sockets = sorted(paths.run.glob("*/admin.sock"))
    late = await asyncio.gather(*(_late(paths, socket) for socket in sockets))
    found = [socket.parent.name for socket, is_late in zip(sockets, late, strict=True) if is_late]
    return found + [path.parent.name for path in sorted(paths.run.glob("*/bootstrap.json")) if _fresh(paths, path)]


def _fresh(paths: Paths, bootstrap: Path) -> bool:
    service = json.loads(bootstrap.read_text())["node"]["cluster"]
    try:
        return time.time() - (paths.identity / service / DATA_LINK).lstat().st_mtime < TAKEN_SECONDS
    except OSError:
        return True


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
