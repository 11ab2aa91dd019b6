"""mTLS with the identity that lies in a folder, read again whenever it has changed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc

# The files of an identity, replaced together by a renamed link: see the authority that writes them.
GENERATION, CERTIFICATE, KEY, TRUST = "..data", "cert.pem", "key.pem", "ca.pem"
# Beside the bootstrap: which generation every new connection of the process uses.
TAKEN = "identity"
TAKEN_SECONDS, POLL_SECONDS = 2.5, 0.25  # gRPC's own client reads each second, by envoy/proxyless.json


def server(folder: Path) -> grpc.ServerCredentials:
    """For a server that shows this identity and takes no peer without one of the same roots.

    Raises:
        OSError: there is no identity.
    """
    in_force = _generation(folder)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Asked before each handshake; None keeps what is in force, and so does whatever is raised."""
        nonlocal in_force
        if (generation := _generation(folder)) == in_force:
            return None
        configuration = _read(folder, generation)
        in_force = generation
        return configuration

    first = _read(folder, in_force)
    # The stubs do not know that None is an answer.
    return grpc.dynamic_ssl_server_credentials(first, changed, require_client_authentication=True)  # type: ignore[arg-type]


async def leave_word(folder: Path, file: Path) -> None:
    """Writes into `file` which generation is in use, until cancelled.

    gRPC's client says nothing of what it has read. So it is what has lain there for longer than two readings take, by
    the time of this process: one that was stopped for a while has not read either.
    """
    loop = asyncio.get_running_loop()
    seen, since, said = "", 0.0, ""
    while True:
        generation = _generation(folder)
        if generation != seen:
            seen, since = generation, loop.time()
        elif seen != said and loop.time() - since > TAKEN_SECONDS:
            said = _say(file, seen)
        await asyncio.sleep(POLL_SECONDS)


def _say(file: Path, generation: str) -> str:
    file.write_text(generation)
    return generation


def _generation(folder: Path) -> str:
    """Names what lies there now: certificate, key and roots are those of one generation."""
    return str((folder / GENERATION).readlink())


def _read(folder: Path, generation: str) -> grpc.ServerCertificateConfiguration:
    certificate, key, trust = ((folder / generation / name).read_bytes() for name in (CERTIFICATE, KEY, TRUST))
    return grpc.ssl_server_certificate_configuration([(key, certificate)], trust)
