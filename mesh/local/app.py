"""A service's own process, behind its sidecar or without one: ready when it says so, and its health check agrees."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.local.errors import StartError
from mesh.local.notify import NotifySocket
from mesh.local.process import Child, OneChild, describe_exit

STOP_SECONDS = 20.0  # the runtime's own drain takes 15
SILENCE_SECONDS = 120.0  # preparation may take long, but says how far it is
CHECK_SECONDS = 10.0


class App(OneChild):
    """One run after the other of `argv`, listening on the socket `listen`.

    `env` is asked at each start; `on_status` gets what the app says that it does.
    """

    def __init__(
        self,
        argv: list[str],
        env: Callable[[], Mapping[str, str]],
        *,
        cwd: Path,
        listen: Path,
        log: Path,
        on_status: Callable[[str], None],
    ) -> None:
        self._argv, self._cwd, self._listen, self._log = argv, cwd, listen, log
        self._notify = NotifySocket(listen.with_name("notify.sock"), on_status)
        self._env = env
        super().__init__()

    async def start(self) -> None:
        """Starts it and returns when it has said READY=1 and its health is SERVING.

        Raises:
            StartError: it ended, or fell silent for two minutes; the end of its log is in the message.
        """
        await self._notify.open()
        env = {**self._env(), "NOTIFY_SOCKET": str(self._notify.path)}
        self._child = Child(self._argv, self._log, env=env, cwd=self._cwd)
        try:
            await self._child.start()
            await self._ready(self._child)
        except BaseException:
            await self.stop()
            raise

    @property
    def port(self) -> int | None:
        """Where it takes calls from the mesh itself; None behind a sidecar."""
        return self._notify.port

    async def stop(self) -> None:
        """Asks it to finish what runs and to end; kills it if it does not."""
        if self._child:
            await self._child.stop(STOP_SECONDS)
        self._notify.close()

    async def _ready(self, child: Child) -> None:
        ended = asyncio.create_task(child.wait())
        ready = asyncio.create_task(self._notify.ready.wait())
        try:
            while not ready.done():
                heard = self._notify.heard
                await asyncio.wait((ended, ready), timeout=SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise StartError(
                        f"it ended ({describe_exit(ended.result())}); {self._log} ends with:\n{child.tail()}"
                    )
                if not ready.done() and heard == self._notify.heard:
                    raise StartError(
                        f"it said nothing for {SILENCE_SECONDS:.0f} s; {self._log} ends with:\n{child.tail()}"
                    )
        finally:
            ended.cancel()
            ready.cancel()
        await self._serving()

    async def _serving(self) -> None:
        async with grpc.aio.insecure_channel(f"unix:{self._listen}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            request = health_pb2.HealthCheckRequest()
            try:
                answer = await stub.Check(request, timeout=CHECK_SECONDS, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                raise StartError(f"its health check fails: {error.code().name} {error.details()}") from None
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise StartError("it says that it is ready, but its health is not SERVING")
