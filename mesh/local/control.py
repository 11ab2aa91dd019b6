"""The control plane as the runner sees it: a program that must be fed values and endpoints, again after each start."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration
from nourish.mesh.v1 import control_pb2, registry_pb2
from nourish.mesh.v1.control_pb2_grpc import ControlServiceStub
from nourish.mesh.v1.registry_pb2_grpc import RegistryServiceStub

from mesh.local.environment import python_environment
from mesh.local.errors import LocalError, RefusedError, StartError
from mesh.local.paths import Paths
from mesh.local.process import Child, OneChild, backoff
from mesh.values import ValuesError, ValuesFile

if TYPE_CHECKING:  # a name of the stub file alone
    from nourish.mesh.v1.control_pb2_grpc import ControlServiceAsyncStub

SOURCE = "local-runner"
READY_SECONDS = 30.0
REPORT_SECONDS = 10.0
APPLY_SECONDS = 30
STOP_SECONDS = 3.0


class ControlPlane(OneChild):
    """Runs `python -m mesh.xds`; `values` and `endpoints` say what to tell it whenever it has started."""

    def __init__(
        self,
        root: Path,
        paths: Paths,
        *,
        values: Callable[[], list[ValuesFile]],
        endpoints: Callable[[], list[registry_pb2.Endpoint]],
    ) -> None:
        self._root, self._paths = root, paths
        self._values, self._endpoints = values, endpoints
        super().__init__()
        self._channel: grpc.aio.Channel | None = None
        self._stale = asyncio.Event()

    async def start(self) -> None:
        """Starts it, gives it the values in force and the endpoints there are.

        Raises:
            RefusedError: it refuses the values.
            StartError: it ended, or does not answer.
        """
        socket = f"unix:{self._paths.control_socket}"
        jwks = self._paths.identity / "jwks.json"
        argv = [sys.executable, "-m", "mesh.xds", "--socket", socket, "--jwks", str(jwks)]
        env = python_environment(self._root, self._paths)
        self._child = Child(argv, self._paths.logs / "control.log", env=env, cwd=self._root)
        try:
            await self._child.start()
            self._channel = grpc.aio.insecure_channel(socket)
            await self._answers(self._child)
            await self._apply()
            await self._report(wait=False)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops it; the proxies keep what they have."""
        if self._channel:
            await self._channel.close()
            self._channel = None
        if self._child:
            await self._child.stop(STOP_SECONDS)

    def changed(self) -> None:
        """The endpoints are not what they were: `report_forever` sends them."""
        self._stale.set()

    async def report_forever(self) -> None:
        """Sends all endpoints after each change, and again until they are taken."""
        failures = 0
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                await self._report(wait=False)
                failures = 0
            except StartError:  # it is down, and will be told when it is back
                failures += 1
                self._stale.set()
                await asyncio.sleep(backoff(failures))

    async def settle(self) -> None:
        """Sends the endpoints, and returns when every proxy has them; gives up quietly if the control plane is down."""
        with suppress(StartError):
            await self._report(wait=True)

    async def _answers(self, child: Child) -> None:
        call = asyncio.ensure_future(
            self._stub().GetMesh(control_pb2.GetMeshRequest(), timeout=READY_SECONDS, wait_for_ready=True)
        )
        ended = asyncio.create_task(child.wait())
        try:
            await asyncio.wait((call, ended), return_when=asyncio.FIRST_COMPLETED)
            if not call.done() or call.exception():
                raise StartError(f"the control plane does not start; control.log ends with:\n{child.tail()}")
        finally:
            call.cancel()
            ended.cancel()

    async def _apply(self) -> None:
        try:
            files = [control_pb2.ValuesFile(path=file.path, content=file.text) for file in self._values()]
        except ValuesError as error:
            raise RefusedError(str(error)) from None
        request = control_pb2.ApplyValuesRequest(files=files, timeout=Duration(seconds=APPLY_SECONDS))
        try:
            answer = await self._stub().ApplyValues(request, timeout=APPLY_SECONDS + 5)
        except grpc.aio.AioRpcError as error:
            raise _unreachable(error) from None
        if not answer.applied:
            raise RefusedError("\n".join(answer.errors))

    async def _report(self, *, wait: bool) -> None:
        request = registry_pb2.ReportEndpointsRequest(source=SOURCE, endpoints=self._endpoints(), wait=wait)
        try:
            await RegistryServiceStub(self._connected()).ReportEndpoints(request, timeout=REPORT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _unreachable(error) from None

    def _stub(self) -> ControlServiceAsyncStub:
        return ControlServiceStub(self._connected())

    def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise StartError("the control plane is not running")
        return self._channel


def _unreachable(error: grpc.aio.AioRpcError) -> LocalError:
    return StartError(f"the control plane does not answer: {error.code().name} {error.details()}")
