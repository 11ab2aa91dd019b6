"""One instance: an app, and the Envoy beside it that alone reaches it, unless the app is its own proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from nourish.mesh.v1 import registry_pb2

from mesh.local.app import App
from mesh.local.envoy import Envoy
from mesh.local.events import InstanceState, ProcessState
from mesh.local.process import Keeper, Report
from mesh.topology import EDGE, DataPlane, Instance


class Workload:
    """Keeps the processes of an instance running; `proxy` is None for one that the mesh reaches itself.

    `changed()` is called whenever what others may know has changed; `report` and `patient` are a Keeper's.
    """

    def __init__(
        self,
        instance: Instance,
        proxy: Envoy | None,
        app: App,
        *,
        changed: Callable[[], None],
        report: Report,
        patient: bool,
    ) -> None:
        self.instance = instance
        self.status = ""
        self._envoy = proxy
        self._leaving = False
        self._program = app
        self._app = Keeper(instance.id, app, changed=changed, report=report, patient=patient)
        self._proxy: Keeper | None = None
        if proxy:
            self._proxy = Keeper(f"{instance.id} proxy", proxy, changed=changed, report=report, patient=patient)
        self._changed = changed

    def start(self, *, proxy_after: asyncio.Future[None], app_after: asyncio.Future[None]) -> None:
        """Begins each process when what it needs is there; returns at once."""
        if self._proxy:
            self._proxy.start(proxy_after)
            self._app.start(app_after)
        else:
            self._app.start(asyncio.ensure_future(_both(proxy_after, app_after)))

    @property
    def data_plane(self) -> DataPlane:
        """How it takes the mesh."""
        return "sidecar" if self._proxy else "proxyless"

    @property
    def port(self) -> int | None:
        """Where the mesh reaches it."""
        return self._envoy.port if self._envoy else self._program.port

    @property
    def is_ready(self) -> bool:
        """Whether it may be sent traffic."""
        return (self._proxy is None or self._proxy.up) and self._app.up and not self._leaving

    @property
    def endpoint(self) -> registry_pb2.Endpoint | None:
        """Where callers reach it, None unless it may be sent traffic. The edge is nobody's callee."""
        if not self.is_ready or self.port is None or self.instance.service == EDGE:
            return None
        return registry_pb2.Endpoint(
            service=self.instance.service,
            instance=self.instance.id,
            subset=self.instance.subset,
            address="127.0.0.1",
            port=self.port,
        )

    @property
    def state(self) -> InstanceState:
        """What it is now, for people."""
        i, app = self.instance, _process(self._app)
        proxy = _process(self._proxy) if self._proxy else ProcessState(None, up=False, restarts=0)
        return InstanceState(
            i.id, i.service, i.subset, self.is_ready, self.port, self.status, app, proxy, self.data_plane
        )

    async def ready(self) -> None:
        """Returns when all were ready for the first time; raises LocalError if one never will be."""
        await asyncio.gather(*(keeper.ready() for keeper in (self._proxy, self._app) if keeper))

    async def stop(self, withdrawn: Callable[[], Awaitable[None]]) -> None:
        """Stops it without losing a request: withdrawn -> every proxy knows -> drained -> app -> proxy."""
        serving = self.is_ready
        self._leaving = True
        self._changed()
        if serving:
            await withdrawn()
            if self._envoy:
                await self._envoy.drain()
        await self._app.stop()
        if self._proxy:
            await self._proxy.stop()


async def _both(one: asyncio.Future[None], other: asyncio.Future[None]) -> None:
    await asyncio.gather(asyncio.shield(one), asyncio.shield(other))


def _process(keeper: Keeper) -> ProcessState:
    return ProcessState(keeper.program.pid, keeper.up, keeper.restarts)
