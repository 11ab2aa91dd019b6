"""A rolling restart: the instances of a service one after the other, while its callers always have one that answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Protocol

from mesh import admin
from mesh.admin import Admin, AdminError, NobodyListensError
from mesh.local.errors import RefusedError, StartError
from mesh.local.events import Event
from mesh.local.process import FATAL_FAILURES
from mesh.local.workload import Workload
from mesh.topology import EDGE, Instance, Service, Topology, did_you_mean

READY_SECONDS = 180.0
AGREE_SECONDS = 60.0  # an instance that outlier detection has ejected is back within half of that
POLL_SECONDS = 0.05

Host = tuple[str, int]  # instance and port
Tell = Callable[[Event], None]


class Running(Protocol):
    """What a restart needs of the mesh that runs."""

    @property
    def topology(self) -> Topology:
        """What is to run."""

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """What runs, by instance."""

    def admin(self, instance: str) -> Admin:
        """The admin interface of an instance's proxy."""

    async def settle(self) -> None:
        """Returns when every proxy has acknowledged the endpoints that there are now."""

    async def replace(self, instance: Instance, withdrawn: Callable[[], Awaitable[None]]) -> Workload:
        """Stops an instance as `Workload.stop` does, and begins to start it again."""


def check(topology: Topology, service: str, *, force: bool = False) -> None:
    """Finds out whether callers have another instance while one restarts.

    Raises:
        RefusedError: no such service runs, or only one instance of it takes calls and `force` is not set.
    """
    if service not in topology.services:
        raise RefusedError(f"nothing runs as {service!r}{did_you_mean(service, topology.services)}")
    stanza = topology.services[service]
    live = [i.id for i in topology.instances(service) if i.subset in stanza.live_subsets]
    if len(live) < 2 and not force:
        raise RefusedError(
            f"only {' '.join(live)} takes calls to {service}: nobody would answer while it restarts. "
            f"{_cure(stanza)} with `mesh apply`; --force restarts it with a gap"
        )


def _cure(service: Service) -> str:
    path = f"services.{service.name}"
    if "stable" not in service.live_subsets:
        return f"Raise {path}.canary.replicas, or set {path}.canary.weight below 100,"
    weight = f", or set {path}.canary.weight above 0," if service.canary.replicas else ""
    return f"Raise {path}.replicas to {service.replicas + 1}{weight}"


async def one_by_one(
    mesh: Running, service: str, tell: Tell, *, force: bool = False, only: Collection[str] = ()
) -> None:
    """Restarts each instance, or `only` these, once every caller counts all others healthy; ends with one that fails.

    An acknowledged endpoint is not a healthy one: a new host gets calls only after its first health check, which each
    caller makes on its own. So each caller's proxy is asked what it thinks.

    Raises:
        RefusedError: as `check`.
        StartError: an instance did not come back, or a caller does not see it.
    """
    check(mesh.topology, service, force=force)

    async def withdrawn() -> None:
        await mesh.settle()
        await disagreeing(mesh, service)  # whoever does not answer in all that time is not waited for

    instances = [i for i in mesh.topology.instances(service) if not only or i.id in only]
    for instance in instances:
        if not force:
            await _agreed(mesh, service)
            _has_another(mesh, instance)
        tell(Event("stopping", instance.id))
        await _came_up(await mesh.replace(instance, withdrawn))
        await mesh.settle()
        await _agreed(mesh, service)
        tell(Event("ready", instance.id))


async def disagreeing(mesh: Running, service: str, seconds: float = AGREE_SECONDS) -> list[str]:
    """Waits until every caller counts exactly those instances healthy that are ready; the callers that do not."""
    deadline = time.monotonic() + seconds
    while True:
        ready = {(i, e.port) for i, w in mesh.workloads.items() if w.instance.service == service and (e := w.endpoint)}
        callers = [i for i, w in mesh.workloads.items() if w.is_ready and _calls(mesh.topology, w, service)]
        agree = await asyncio.gather(*(_agrees(mesh.admin(i), service, ready) for i in callers))
        late = [caller for caller, agrees in zip(callers, agree, strict=True) if not agrees]
        if not late or time.monotonic() > deadline:
            return late
        await asyncio.sleep(POLL_SECONDS)


def hosts(clusters: Mapping[str, Any], service: str) -> dict[Host, bool]:
    """The instances of a service in Envoy's `/clusters`, and whether every cluster that has one counts it healthy."""
    found: dict[Host, bool] = {}
    for host in admin.hosts(clusters):
        if host.service == service:
            key = (host.instance, host.port)
            found[key] = found.get(key, True) and host.healthy
    return found


def _calls(topology: Topology, workload: Workload, service: str) -> bool:
    caller = workload.instance.service
    return caller == EDGE or (caller in topology.services and service in topology.services[caller].calls)


async def _agrees(proxy: Admin, service: str, ready: set[Host]) -> bool:
    try:
        return hosts(await proxy.clusters(), service) == dict.fromkeys(ready, True)
    except NobodyListensError:  # it calls nobody, or it is proxyless: what it has acknowledged it goes by
        return True
    except AdminError:
        return False


async def _agreed(mesh: Running, service: str) -> None:
    if late := await disagreeing(mesh, service):
        raise StartError(
            f"the proxies of {', '.join(late)} do not count every instance of {service} healthy after "
            f"{AGREE_SECONDS:.0f} s: see `mesh status` and `mesh logs`. No further instance was stopped"
        )


def _has_another(mesh: Running, instance: Instance) -> None:
    live = mesh.topology.services[instance.service].live_subsets
    peers = [w for w in mesh.workloads.values() if w.instance.service == instance.service and w.instance != instance]
    if not any(w.is_ready and w.instance.subset in live for w in peers):
        raise StartError(
            f"no instance of {instance.service} but {instance.id} is ready: it was not stopped. "
            f"See `mesh logs {instance.service}`; --force restarts it with a gap"
        )


async def _came_up(workload: Workload) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not workload.is_ready:
        state = workload.state
        if state.app.restarts + state.proxy.restarts >= FATAL_FAILURES or time.monotonic() > deadline:
            raise StartError(
                f"{state.id} does not come up again: see `mesh logs {state.id}`. "
                "The runner goes on trying; no further instance was stopped"
            )
        await asyncio.sleep(POLL_SECONDS)
