"""Whether the proxies that run here, and the processes without one, use the certificates in their folders."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

from mesh.admin import Admin, AdminError, NobodyListensError
from mesh.identity.files import DATA_LINK
from mesh.identity.rotation import uses
from mesh.local.paths import Paths

TAKEN = "identity"  # the word that a process without a proxy leaves, beside its bootstrap


async def lagging(paths: Paths) -> list[str]:
    """The instances whose proxy runs and does not use yet what lies in its folder, or does not say what it uses.

    A proxy runs if somebody listens on its admin socket: the runner may have died without it. A process without a proxy
    leaves word in its folder of what it uses.
    """
    sockets = sorted(paths.run.glob("*/admin.sock"))
    late = await asyncio.gather(*(_late(paths, socket) for socket in sockets))
    found = [socket.parent.name for socket, is_late in zip(sockets, late, strict=True) if is_late]
    bare = sorted(paths.run.glob("*/bootstrap.json"))
    late = await asyncio.gather(*(_late_without_proxy(paths, bootstrap) for bootstrap in bare))
    return found + [path.parent.name for path, is_late in zip(bare, late, strict=True) if is_late]


async def _late_without_proxy(paths: Paths, bootstrap: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(str(paths.app_socket(bootstrap.parent.name)))
    except OSError:  # it does not run
        return False
    writer.close()
    return not _taken(paths, bootstrap)


def _taken(paths: Paths, bootstrap: Path) -> bool:
    with suppress(OSError, ValueError):
        service = json.loads(bootstrap.read_text())["node"]["cluster"]
        return bootstrap.with_name(TAKEN).read_text() == str((paths.identity / service / DATA_LINK).readlink())
    return False


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
