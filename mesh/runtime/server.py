"""`serve`: a gRPC server with everything around it that no service has to remember."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from mesh.runtime import notify
from mesh.runtime.environment import environment, required
from mesh.runtime.middleware import Context, MethodInfo, wrap

__all__ = ["Context", "build_server", "serve"]

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
DRAIN_SECONDS = 15.0
# Keep-alive is the sidecar's business: both ends of this connection are on one machine.
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)

_log = logging.getLogger("mesh.runtime")


async def serve(*servicers: object, address: str | None = None) -> None:
    """Serves generated servicers until SIGTERM or SIGINT, then drains: health says NOT_SERVING, running calls finish.

    Args:
        servicers: instances of generated `...Servicer` classes with async methods.
        address: where to listen; the runner's NOURISH_LISTEN if not given.

    Raises:
        RuntimeError: nowhere to listen, or the address is taken.
    """
    listen = address or required(environment().listen, "NOURISH_LISTEN")
    server, checks = build_server(*servicers)
    if listen.startswith("unix:"):
        _clear_socket(listen.removeprefix("unix:"))
    server.add_insecure_port(listen)
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    notify.ready()
    _log.info("serving", extra={"address": listen})
    await stop.wait()
    notify.stopping()
    await checks.enter_graceful_shutdown()
    await server.stop(DRAIN_SECONDS)


def build_server(*servicers: object) -> tuple[grpc.aio.Server, HealthServicer]:
    """Returns a server with the servicers wrapped by MIDDLEWARE, health and reflection; not started, no address yet."""
    server = grpc.aio.server(options=OPTIONS)
    registrar = _Registrar(server)
    for servicer in servicers:
        _add(servicer, registrar)
    checks = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for name in ("", *registrar.services):
        checks._server_status[name] = health_pb2.HealthCheckResponse.SERVING  # `set` is a coroutine; nothing waits yet
    reflection.enable_server_reflection((*registrar.services, reflection.SERVICE_NAME, health.SERVICE_NAME), server)
    return server, checks


def _add(servicer: object, registrar: _Registrar) -> None:
    """Calls the generated `add_...Servicer_to_server` of the servicer's contract."""
    for base in type(servicer).__mro__:
        if base.__module__.endswith("_pb2_grpc"):
            module = __import__(base.__module__, fromlist=["*"])
            getattr(module, f"add_{base.__name__}_to_server")(servicer, registrar)
            return
    raise TypeError(f"{type(servicer).__name__} does not derive from a generated Servicer class")


class _Registrar:
    """Stands in for the server while generated code registers handlers, and wraps each one."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Generated code gives the same handlers here and below; they are taken once."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.services.append(service)
        methods = descriptor_pool.Default().FindServiceByName(service).methods_by_name
        wrapped = {}
        for name, handler in handlers.items():
            if handler.unary_unary is None:
                raise TypeError(f"{service}/{name}: `serve` does not wrap streaming methods yet")
            wrapped[name] = grpc.unary_unary_rpc_method_handler(
                wrap(handler.unary_unary, MethodInfo.of(methods[name])),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._server.add_registered_method_handlers(service, wrapped)


def _clear_socket(path: str) -> None:
    """Removes what a killed process left; the runner starts one process per socket."""
    Path(path).unlink(missing_ok=True)
