"""The control plane's sockets: ADS for the proxies, and its own API for the runner, the command and others.

The only folder of `mesh.xds` that waits for anything; what it waits for is decided in `fleet.py` and `stream.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from pathlib import Path

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc
from nourish.mesh.v1 import control_pb2_grpc, registry_pb2_grpc, settings_pb2_grpc

from mesh.contract import Contract
from mesh.xds.fleet import Fleet
from mesh.xds.plan import Materials
from mesh.xds.recovery import GRACE_SECONDS
from mesh.xds.server.control import ControlService
from mesh.xds.server.discovery import DiscoveryService
from mesh.xds.server.edits import Edits
from mesh.xds.server.progress import Progress
from mesh.xds.server.registry import RegistryService
from mesh.xds.server.settings import SettingsService
from mesh.xds.server.validate import Validator
from mesh.xds.server.watch import Watched

log = logging.getLogger(__name__)

KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.http2.min_ping_interval_without_data_ms", 5_000)]


async def serve(
    address: str, fleet: Fleet, stop: asyncio.Event, values: Path | None = None, account: Path | None = None
) -> None:
    """Serves on a gRPC address, normally `unix:/path` (which only its owner may open), until `stop` is set.

    `values` is a file or folder of values to watch; without one, values come by ControlService alone. `account` is the
    folder of a Kubernetes service account, with which endpoints are read from its cluster too.

    Raises:
        OSError: the address cannot be bound, or Envoy is not installed.
    """
    progress, epoch = Progress(), secrets.token_hex(8)
    edits = Edits(fleet, progress, Validator())
    watched = Watched(values, edits) if values else None
    control = ControlService(fleet, edits, epoch, watched)
    registry = RegistryService(fleet, progress, epoch)
    server = grpc.aio.server(options=KEEPALIVE)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(DiscoveryService(fleet, progress), server)
    control_pb2_grpc.add_ControlServiceServicer_to_server(control, server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    settings_pb2_grpc.add_SettingsServiceServicer_to_server(SettingsService(edits.in_force), server)
    umask = os.umask(0o077)
    try:
        server.add_insecure_port(address)
        await server.start()
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    finally:
        os.umask(umask)
    log.info("control plane on %s", address)
    grace = asyncio.get_running_loop().call_later(GRACE_SECONDS, fleet.recovered)
    following = [asyncio.create_task(watched.forever())] if watched else []
    if account:
        from mesh.xds.server.kubernetes import EndpointSlices  # noqa: PLC0415 - a laptop need not load an HTTP client

        following.append(asyncio.create_task(EndpointSlices(fleet, account).forever()))
    await stop.wait()
    grace.cancel()
    for task in following:
        task.cancel()
    await server.stop(grace=0.2)
    registry.close()


async def run(address: str, fleet: Fleet, values: Path | None = None, account: Path | None = None) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(address, fleet, stop, values, account)


def load(contract: Path, jwks: Path, lua: Path) -> Fleet:
    """Reads what the control plane needs from disk.

    Raises:
        OSError: a file cannot be read.
        mesh.contract.ContractError: the contracts contradict themselves.
    """
    sources = {path.name: path.read_text() for path in sorted(lua.glob("*.lua"))}
    return Fleet(Contract.load(contract.read_bytes()), Materials(jwks.read_text(), sources))
