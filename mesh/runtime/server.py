"""`serve`: a gRPC server with everything around it that no service has to remember."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from mesh.runtime import cache, notify, options, settings, telemetry
from mesh.runtime.answers import Answers, StoredAnswers
from mesh.runtime.cache import figures
from mesh.runtime.db import current as current_database
from mesh.runtime.environment import environment, required
from mesh.runtime.handlers import MethodInfo, is_implemented, register, shaped
from mesh.runtime.health import Watch
from mesh.runtime.middleware import Server, wrap
from mesh.runtime.running import DRAIN_SECONDS, Running

if TYPE_CHECKING:
    from mesh.runtime.proxyless.guard import Guard

_log = logging.getLogger("mesh.runtime")


async def serve(*servicers: object, address: str | None = None) -> None:
    """Serves generated servicers until SIGTERM or SIGINT, then drains.

    Draining, health says NOT_SERVING, calls finish, and streams have a while to.

    Args:
        servicers: instances of generated `...Servicer` classes with async methods.
        address: where to listen; the runner's NOURISH_LISTEN if not given.

    Raises:
        RuntimeError: nowhere to listen, or the address is taken.
    """
    listen = address or required(environment().listen, "NOURISH_LISTEN")
    async with telemetry.running(), AsyncExitStack() as stack:
        guard = await _guard(stack)
        await _link_caches(stack)
        await _serve(servicers, listen, guard)


async def _guard(stack: AsyncExitStack) -> Guard | None:
    """What stands in for a sidecar, once it has its rules; whom to call it learns meanwhile."""
    if not environment().inbound:
        return None
    # They bring much that no process behind a sidecar needs.
    from mesh.runtime import client, proxyless  # noqa: PLC0415

    client.egress().get_state(try_to_connect=True)
    return await stack.enter_async_context(proxyless.guard())


async def _link_caches(stack: AsyncExitStack) -> None:
    """Ties the caches to those of other instances, to the events that clear them, and to what Prometheus reads."""
    figures.show()
    linked = [found for found in cache.caches() if found.shared or found.cleared_by]
    if not linked:
        return
    if not environment().events_url:
        names = ", ".join(found.name for found in linked)
        _log.warning("no event clears %s, and nothing is shared: give the service `events: {}` in the values", names)
        return
    from mesh.runtime.cache import link  # noqa: PLC0415 - brings NATS

    await stack.enter_async_context(link.linked(linked, environment().events_url))


async def _serve(servicers: Sequence[object], listen: str, guard: Guard | None) -> None:
    built = build_server(*servicers, guard=guard)
    if listen.startswith("unix:"):
        _clear_socket(listen.removeprefix("unix:"))
    built.grpc.add_insecure_port(listen)
    if guard:
        notify.bound(guard.listen(built.grpc, environment().inbound))
    following = await settings.follow()
    await built.grpc.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    notify.ready()
    _log.info("serving", extra={"address": listen})
    watching = asyncio.create_task(Watch(built.checks, built.services).run())
    await stop.wait()
    watching.cancel()
    notify.stopping()
    if guard:  # nothing before it drains
        await guard.lull(DRAIN_SECONDS)
    await built.stop(DRAIN_SECONDS)
    if following:
        following.cancel()


@dataclass(frozen=True)
class Built:
    """A server and what belongs to it.

    Attributes:
        grpc: the server itself.
        checks: its health service.
        running: what it is at work on.
        services: the names that health knows, "" for the whole.
    """

    grpc: grpc.aio.Server
    checks: HealthServicer
    running: Running
    services: tuple[str, ...]

    async def stop(self, seconds: float | None) -> None:
        """Takes no new calls and lets those that run finish, for so long at most; None cuts them at once."""
        await self.checks.enter_graceful_shutdown()
        self.running.drain()
        await self.grpc.stop(seconds)


def build_server(*servicers: object, answers: Answers | None = None, guard: Guard | None = None) -> Built:
    """Returns a server with the servicers wrapped by MIDDLEWARE, health and reflection; not started, no address yet.

    Args:
        servicers: as `serve` takes them.
        answers: where it is kept what each request_id was answered, if not in the open database.
        guard: stands before all of them where no sidecar does.

    Raises:
        RuntimeError: a method takes a request_id, and no database is open in which to keep what it was answered.
        TypeError: not a servicer.
    """
    how = options.SERVER_WITHOUT_SIDECAR if guard else options.SERVER
    server = grpc.aio.server(options=how)
    door = guard.door(server) if guard else server
    if answers is None and (db := current_database()):
        answers = StoredAnswers(db)
    running = Running(max_calls=environment().max_calls, max_streams=environment().max_streams)
    registrar = _Registrar(door, Server(running, answers))
    for servicer in servicers:
        _add(servicer, registrar)
    checks = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, door)
    services = ("", *registrar.services)
    for name in services:
        checks._server_status[name] = health_pb2.HealthCheckResponse.SERVING  # `set` is a coroutine; nothing waits yet
    reflection.enable_server_reflection((*registrar.services, reflection.SERVICE_NAME, health.SERVICE_NAME), door)
    return Built(server, checks, running, services)


def _add(servicer: object, registrar: _Registrar) -> None:
    """Calls the generated `add_...Servicer_to_server` of the servicer's contract."""
    for base in type(servicer).__mro__:
        if base.__module__.endswith("_pb2_grpc"):
            __import__(base.__module__.removesuffix("_grpc"))  # defines the service; not all of the other import it
            module = __import__(base.__module__, fromlist=["*"])
            getattr(module, f"add_{base.__name__}_to_server")(servicer, registrar)
            return
    raise TypeError(f"{type(servicer).__name__} does not derive from a generated Servicer class")


class _Registrar:
    """Stands in for the server while generated code registers handlers, and wraps each one."""

    def __init__(self, server: Any, shared: Server) -> None:
        self._server = server
        self._shared = shared
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Generated code gives the same handlers here and below; they are taken once."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.services.append(service)
        methods = descriptor_pool.Default().FindServiceByName(service).methods_by_name
        wrapped = {}
        for name, handler in handlers.items():
            method = MethodInfo.of(methods[name])
            if method.takes_request_id and is_implemented(handler):
                self._check_answers(method)
            wrapped[name] = register(wrap(shaped(handler, method), method, self._shared), handler)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._server.add_registered_method_handlers(service, wrapped)

    def _check_answers(self, method: MethodInfo) -> None:
        answers = self._shared.answers
        if not answers:
            raise RuntimeError(
                f"{method.path} takes a request_id: open the service's database before `serve`, which keeps there "
                "what each one was answered"
            )
        if isinstance(answers, StoredAnswers):
            answers.check(method)


def _clear_socket(path: str) -> None:
    """Removes what a killed process left; the runner starts one process per socket."""
    Path(path).unlink(missing_ok=True)
