"""One instance: an app, and the Envoy beside it that alone reaches it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from nourish.mesh.v1 import registry_pb2

from mesh.local.app import App
from mesh.local.envoy import Envoy
from mesh.local.events import InstanceState, ProcessState
from mesh.local.process import Keeper, Report
from mesh.topology import EDGE, Instance


class Workload:
    """Keeps both processes of an instance running.

    `changed()` is called whenever what others may know has changed; `report` and `patient` are a Keeper's.
    """

    def __init__(
        self,
        instance: Instance,
        proxy: Envoy,
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
        self._proxy = Keeper(f"{instance.id} proxy", proxy, changed=changed, report=report, patient=patient)
        self._app = Keeper(instance.id, app, changed=changed, report=report, patient=patient)
        self._changed = changed

    def start(self, *, proxy_after: asyncio.Future[None], app_after: asyncio.Future[None]) -> None:
        """Begins each process when what it needs is there; returns at once."""
        self._proxy.start(proxy_after)
        self._app.start(app_after)

    @property
    def is_ready(self) -> bool:
        """Whether it may be sent traffic."""
        return self._proxy.up and self._app.up and not self._leaving

    @property
    def endpoint(self) -> registry_pb2.Endpoint | None:
        """Where other sidecars reach it, None unless it may be sent traffic. The edge is nobody's callee."""
        if not self.is_ready or self._envoy.port is None or self.instance.service == EDGE:
            return None
        return registry_pb2.Endpoint(
            service=self.instance.service,
            instance=self.instance.id,
            subset=self.instance.subset,
            address="127.0.0.1",
            port=self._envoy.port,
        )

    @property
    def state(self) -> InstanceState:
        """What it is now, for people."""
        app, proxy = (ProcessState(k.program.pid, k.up, k.restarts) for k in (self._app, self._proxy))
        i = self.instance
        return InstanceState(i.id, i.service, i.subset, self.is_ready, self._envoy.port, self.status, app, proxy)

    async def ready(self) -> None:
        """Returns when both were ready for the first time; raises LocalError if one never will be."""
        await asyncio.gather(self._proxy.ready(), self._app.ready())

    async def stop(self, withdrawn: Callable[[], Awaitable[None]]) -> None:
        """Stops it without losing a request: withdrawn -> every proxy knows -> drained -> app -> proxy."""
        serving = self.is_ready
        self._leaving = True
        self._changed()
        if serving:
            await withdrawn()
            await self._envoy.drain()
        await self._app.stop()
        await self._proxy.stop()
