"""A root gives way to another in three steps, and each waits until every proxy has what the one before it wrote.

    trust    the new root stands beside the old one in every bundle; leaves are still the old one's
    issue    the new root issues; every leaf is replaced by one of its own
    drop     no proxy shows a leaf of the old root any more: it leaves every bundle, and its key is deleted

What is left to do follows from what lies on disk: whoever calls `rotate_root` next goes on where another was ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from cryptography import x509

from mesh.identity import files
from mesh.identity.ca import CertificateAuthority, hex_serial

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
TAKE_SECONDS = 30.0
CHECK_SECONDS = 60.0

# Gives the proxies that do not use yet what lies in their folders.
Lagging = Callable[[], Awaitable[list[str]]]
Report = Callable[[str], None]


class RotationError(Exception):
    """A proxy does not take what was written, or another rotation is at work. Both roots stay trusted."""


async def rotate_root(authority: CertificateAuthority, lagging: Lagging, report: Report = log.info) -> None:
    """Replaces the root, or finishes a replacement that was begun; returns when the old one is gone.

    Raises:
        RotationError: a proxy has not taken a step in time, or another rotation is at work; call again to go on.
        OSError: a file cannot be written; call again to go on.
        ValueError: what lies in the folder is not the authority's.
    """
    try:
        with authority.rotation():
            await _rotate_root(authority, lagging, report)
    except BlockingIOError:
        raise RotationError("another process is replacing the root now: wait until it is done") from None


async def _rotate_root(authority: CertificateAuthority, lagging: Lagging, report: Report) -> None:
    new = await asyncio.to_thread(authority.trust_next)
    report(f"trust: root {new.number} stands in every bundle")
    await settle(lagging)
    await asyncio.to_thread(authority.issue_by, new)
    report(f"issue: every certificate is of root {new.number}")
    await settle(lagging)
    dropped = await asyncio.to_thread(authority.drop_others, new)
    report(f"drop: root {', '.join(map(str, dropped)) or '(none)'} is trusted no more")
    await settle(lagging)


async def rotate_root_when_due(authority: CertificateAuthority, lagging: Lagging) -> None:
    """Replaces the root at half of its life and finishes what another began and left, until cancelled."""
    while True:
        try:
            if await asyncio.to_thread(lambda: authority.rotating or authority.root.past(0.5)):
                await rotate_root(authority, lagging)
        except (RotationError, OSError, ValueError) as error:
            log.error("the root is not replaced yet: %s; next try in %g s", error, CHECK_SECONDS)
        await asyncio.sleep(CHECK_SECONDS)


async def settle(lagging: Lagging) -> None:
    """Waits until no proxy lags.

    Raises:
        RotationError: one does for too long.
    """
    deadline = time.monotonic() + TAKE_SECONDS
    while waiting := await lagging():
        if time.monotonic() > deadline:
            raise RotationError(
                f"{', '.join(waiting)}: its certificates are not taken within {TAKE_SECONDS:g} s, see its Envoy's log; "
                "nothing was dropped, and the same command goes on from here"
            )
        await asyncio.sleep(POLL_SECONDS)


def uses(certs: bytes, folder: Path) -> bool:
    """Whether a proxy whose admin interface answers `/certs` so uses the leaf and the roots that lie in `folder`."""
    with suppress(OSError, ValueError):
        leaf = hex_serial(x509.load_pem_x509_certificate((folder / files.CERTIFICATE).read_bytes()))
        bundle = {hex_serial(root) for root in x509.load_pem_x509_certificates((folder / files.TRUST).read_bytes())}
        shown = json.loads(certs).get("certificates", [])
        leaves = {item["serial_number"] for entry in shown for item in entry.get("cert_chain", [])}
        roots = [{item["serial_number"] for item in entry.get("ca_cert", [])} for entry in shown]
        return leaves <= {leaf} and all(shown_roots in (set(), bundle) for shown_roots in roots)
    return False
