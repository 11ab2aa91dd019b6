"""A watched values file: what stands in it goes through the same door as any edit, at start and at each change."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from pathlib import Path

from mesh import values
from mesh.xds.server.edits import Edit, Edits

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # a ConfigMap mount follows its object by up to a minute anyway
APPLY_SECONDS = 30.0
# After an edit that proxies did not answer to, then twice as long each time: it is pushed to all, and taken back.
AGAIN_SECONDS, MAX_AGAIN_SECONDS = 5.0, 300.0


class Watched:
    """A values file, or a folder of them laid over one another by name. `error`: why it is not in force.

    Its content is compared, not its inode or time: a mount swaps a symbolic link above it.
    """

    def __init__(self, path: Path, edits: Edits) -> None:
        self._path = path
        self._edits = edits
        self._base = ""
        self._again_at, self._pause = math.inf, AGAIN_SECONDS
        self.error = ""

    async def forever(self) -> None:
        """Applies each new content once, and again while nothing is wrong with it but that proxies do not answer.

        What is bad is said, and what was in force stays. So does an edit that came by another way since the last one of
        this file: it is said too, and the next content of the file is taken to know of it.
        """
        last: object = None
        while True:
            try:
                found: object = self._read()
            except values.ValuesError as error:
                found = str(error)
            if found != last or time.monotonic() > self._again_at:
                self._pause = min(self._pause * 2, MAX_AGAIN_SECONDS) if found == last else AGAIN_SECONDS
                last = found
                self.error = await self._apply(found)
                if self.error:
                    log.error("values not taken: %s", self.error)
            await asyncio.sleep(POLL_SECONDS)

    def _read(self) -> list[values.ValuesFile]:
        paths = sorted(self._path.glob("*.yaml")) if self._path.is_dir() else [self._path]
        if not paths:
            raise values.ValuesError([f"{self._path}: holds no .yaml file"])
        return values.read(paths)

    async def _apply(self, found: object) -> str:
        self._again_at = math.inf
        if not isinstance(found, list):
            return str(found)
        try:
            answer = await self._edits.apply(Edit(found, APPLY_SECONDS, base=self._base))
        except Exception as error:  # whatever a file brings about, the watch goes on
            log.exception("values of %s", self._path)
            return f"{self._path}: {error!r}"
        self._base = answer.revision
        if answer.again:
            self._again_at = time.monotonic() + self._pause
        for change in answer.changes if answer.applied else ():
            log.info("applied: %s", change)
        return "\n".join(answer.errors)
