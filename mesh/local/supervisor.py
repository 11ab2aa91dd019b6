"""The mesh on one machine: what runs, in which order it starts, and in which order it stops."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path

from nourish.mesh.v1 import registry_pb2

from mesh.admin import Admin
from mesh.identity import tokens
from mesh.identity.ca import CertificateAuthority
from mesh.identity.rotation import rotate_root_when_due
from mesh.local import keys
from mesh.local.app import App
from mesh.local.certificates import lagging
from mesh.local.control import ControlPlane
from mesh.local.environment import mark, python_environment
from mesh.local.envoy import Envoy, render
from mesh.local.errors import LocalError, RefusedError, StartError
from mesh.local.events import Event, Kind, ProcessState, State, now
from mesh.local.nats import Nats, write_private
from mesh.local.paths import Paths
from mesh.local.postgres import Postgres
from mesh.local.process import Keeper
from mesh.local.restart import check, one_by_one
from mesh.local.runner_socket import serve
from mesh.local.workload import Workload
from mesh.topology import EDGE, Instance, Topology
from mesh.values import ValuesError, ValuesFile, dump, load, merge, read

VALUES_POLL_SECONDS = 0.5


class Mesh:
    """Everything that `mesh up` runs. `port` is the edge's; `only` bounds it to these services and what they need."""

    def __init__(
        self,
        root: Path,
        paths: Paths,
        files: list[ValuesFile],
        *,
        port: int,
        only: tuple[str, ...] | None = None,
        on_event: Callable[[Event], None],
    ) -> None:
        self.edge = f"http://127.0.0.1:{port}"
        self._root, self._paths, self._files, self._port, self._only = root.absolute(), paths, files, port, only
        self._on_event = on_event
        self._since, self._phase = now(), "starting"
        self._topology = self._part(load(files))
        self._workloads: dict[str, Workload] = {}
        self._changing = asyncio.Lock()  # held by whoever starts and stops instances of a mesh that is up
        self._tasks: list[asyncio.Task[None]] = []
        self._rotation: asyncio.Task[None] | None = None
        self._databases: dict[str, str] = {}  # URL by service
        self._events_url = ""
        self._authority: CertificateAuthority | None = None
        connections = self._topology.database.max_connections
        self._postgres = Postgres(paths.home, paths.postgres_sockets, connections)
        self._nats = Nats(paths.home, mark(paths))
        self._control = ControlPlane(self._root, paths, values=self._in_force, endpoints=self._endpoints)
        self._keep_postgres = self._keeper("postgres", self._postgres)
        self._keep_nats = self._keeper("nats", self._nats)
        self._keep_control = self._keeper("control", self._control)

    async def start(self) -> None:
        """Starts all at once but the edge, which waits until all is ready; returns when the edge serves.

        Callers do not wait for their callees to start: they must live with callees that come and go in any case, and
        one after the other would take twice as long.

        Raises:
            LocalError: something cannot start; what has started goes on until `stop`.
        """
        identities = self._spawn(self._issue(self._topology))
        control = self._spawn(self._start_control(identities))
        self._start_workloads(self._topology, proxy_after=control, engines=self._spawn(self._start_engines()))
        await _first_failure([w.ready() for w in self._workloads.values()])
        self._phase = "ready"
        self._changed()
        self._spawn(self._follow_values())
        self._spawn(serve(self._paths.runner_socket, self.restart))
        if self._authority:
            self._spawn(rotate_root_when_due(self._authority, lambda: lagging(self._paths)))

    async def stop(self) -> None:
        """Stops all: the edge first, then callers before callees, then the control plane, then what keeps state."""
        self._phase = "stopping"
        self._say("stopping", "mesh")
        await _cancel([*self._tasks, *([self._rotation] if self._rotation else [])])
        for service in (EDGE, *reversed(self._topology.start_order)):
            await self._stop_workloads([w for w in self._workloads.values() if w.instance.service == service])
        await self._stop_workloads(list(self._workloads.values()))
        await self._keep_control.stop()
        await self._keep_nats.stop()
        await self._keep_postgres.stop()

    async def reconcile(self) -> None:
        """Starts the instances that the values in force add and stops those that they no longer have."""
        async with self._changing:
            await self._reconcile(self._part(load(self._in_force())))

    async def _reconcile(self, topology: Topology) -> None:
        wanted = {i.id for service in (*topology.services, EDGE) for i in topology.instances(service)}
        gone = [w for w in self._workloads.values() if w.instance.id not in wanted]
        self._topology = topology
        await self._issue(topology)
        self._start_workloads(topology, proxy_after=_done(), engines=self._spawn(self._start_engines()))
        await self._stop_workloads(gone)
        for service in topology.services.values():
            own = [w for w in self._workloads.values() if w.instance.service == service.name]
            if others := [w.instance.id for w in own if w.data_plane != service.data_plane]:
                await self._move(service.name, others)

    async def _move(self, service: str, instances: list[str]) -> None:
        """Restarts those that take the mesh in another way from now on: with a gap, if nothing can stand in."""
        try:
            check(self._topology, service)
            alone = False
        except RefusedError:
            alone = True
        await one_by_one(self, service, self._on_event, force=alone, only=instances)

    # --- restarting ---

    async def restart(self, service: str, tell: Callable[[Event], None], *, force: bool) -> None:
        """Restarts the instances of a service one after the other; see `mesh.local.restart`."""
        async with self._changing:
            if not self._keep_control.up:
                raise StartError("the control plane is down, and nothing was stopped: see `mesh logs control`")
            topology = self._part(load(self._in_force()))
            if topology != self._topology:  # an edit a moment ago
                await self._reconcile(topology)
            await one_by_one(self, service, tell, force=force)

    @property
    def topology(self) -> Topology:
        """What is to run."""
        return self._topology

    @property
    def workloads(self) -> dict[str, Workload]:
        """What runs, by instance."""
        return self._workloads

    async def settle(self) -> None:
        """Returns when every proxy has acknowledged the endpoints that there are now."""
        await self._control.settle()

    def admin(self, instance: str) -> Admin:
        """The admin interface of an instance's proxy."""
        return Admin(self._paths.admin_socket(instance))

    async def replace(self, instance: Instance, withdrawn: Callable[[], Awaitable[None]]) -> Workload:
        """Stops an instance as `Workload.stop` does, and begins to start it again."""
        await self._stop_workloads([w for w in self._workloads.values() if w.instance == instance], withdrawn)
        self._start_workloads(self._topology, proxy_after=_done(), engines=_done())
        return self._workloads[instance.id]

    # --- starting ---

    async def _issue(self, topology: Topology) -> None:
        """Certificates for all that has none yet, the token key, and from now on renewal."""
        names = {name: topology.spiffe_id(name) for name in (*topology.services, EDGE)}
        await _cancel([self._rotation] if self._rotation else [])
        self._authority = await asyncio.to_thread(_issue_all, self._paths.identity, names)
        self._rotation = asyncio.create_task(self._authority.rotate_forever(names), name="rotate certificates")
        self._rotation.add_done_callback(self._ended)

    async def _start_control(self, identities: asyncio.Future[None]) -> None:
        self._keep_control.start(identities)
        await self._keep_control.ready()
        self._say("ready", "control")
        self._spawn(self._control.report_forever())
        self._paths.values.write_text(dump(merge(self._files)))

    async def _start_engines(self) -> None:
        """Starts what the services keep state in: those servers that one of them needs and that do not run yet."""
        services, address = self._topology.services.values(), self._topology.events.address
        wanted = [
            (self._keep_postgres, any(s.database for s in services) and not self._topology.database.address),
            (self._keep_nats, any(s.events for s in services) and not address),
        ]
        await asyncio.gather(
            *(self._start_engine(keeper) for keeper, needed in wanted if needed and not keeper.started)
        )
        await self._create_databases()
        if any(s.events for s in services):
            self._events_url = f"nats://{address}" if address else self._nats.url
            await asyncio.to_thread(write_private, self._paths.events_url, self._events_url)

    async def _start_engine(self, keeper: Keeper) -> None:
        keeper.start()
        await keeper.ready()
        self._say("ready", keeper.name)

    async def _create_databases(self) -> None:
        address = self._topology.database.address
        for name, service in self._topology.services.items():
            if service.database and name not in self._databases:
                url = f"postgresql://{name}@{address}/{name}" if address else await self._postgres.create_database(name)
                await asyncio.to_thread(keys.ensure_key, self._paths.keys / name)
                self._databases[name] = url

    def _start_workloads(
        self, topology: Topology, *, proxy_after: asyncio.Future[None], engines: asyncio.Future[None]
    ) -> None:
        for service in (*topology.start_order, EDGE):
            new = [i for i in topology.instances(service) if i.id not in self._workloads]
            callees = topology.start_order if service == EDGE else topology.services[service].calls
            before = [w for w in self._workloads.values() if w.instance.service in callees]
            edge_after = self._spawn(_all_ready(before, proxy_after)) if new and service == EDGE else proxy_after
            for instance in new:
                workload = self._workload(instance)
                self._workloads[instance.id] = workload
                workload.start(proxy_after=edge_after, app_after=engines)
                self._say("starting", instance.id)
                self._spawn(self._announce(workload))

    async def _announce(self, workload: Workload) -> None:
        with suppress(LocalError):  # `start` tells of that
            await workload.ready()
            self._say("ready", workload.instance.id)

    def _workload(self, instance: Instance) -> Workload:
        self._paths.instance(instance.id).mkdir(mode=0o700, exist_ok=True)
        proxy = self._envoy(instance)
        app = App(
            [sys.executable, "-m", "mesh.edge" if instance.service == EDGE else f"services.{instance.service}"],
            lambda: self._environment(instance, proxyless=proxy is None),
            cwd=self._root,
            listen=self._paths.app_socket(instance.id),
            log=self._paths.app_log(instance.id),
            on_status=lambda text: self._status(instance.id, text),
        )
        # Later than at the start somebody is at work, with a fix to come: there is no giving up.
        patient = self._phase == "ready"
        return Workload(instance, proxy, app, changed=self._changed, report=self._say, patient=patient)

    def _envoy(self, instance: Instance) -> Envoy | None:
        """The proxy of an instance; none for one that reads a bootstrap of its own."""
        paths, is_edge = self._paths, instance.service == EDGE
        variables = {
            "NODE_ID": instance.id,
            "SERVICE": instance.service,
            "SUBSET": instance.subset,
            "ZONE": "",  # a laptop is one zone
            "ADMIN_SOCKET": str(paths.admin_socket(instance.id)),
            "CONTROL_SOCKET": str(paths.control_socket),
            "APP_SOCKET": str(paths.app_socket(instance.id)),
            "EGRESS_SOCKET": str(paths.egress_socket(instance.id)),
            "TELEMETRY_SOCKET": str(paths.telemetry_socket(instance.id)),
            "METRICS_PORT": "0",
            "IDENTITY_DIR": str(paths.identity / instance.service),
            "INBOUND_ADDRESS": "127.0.0.1",
            "INBOUND_PORT": str(self._port if is_edge else 0),
        }
        service = self._topology.services.get(instance.service)
        if service and service.data_plane == "proxyless":
            bootstrap = render(self._root / "envoy" / "proxyless.json", variables)
            paths.xds_bootstrap(instance.id).write_text(bootstrap)
            return None
        paths.xds_bootstrap(instance.id).unlink(missing_ok=True)
        return Envoy(
            self._root / "envoy" / "sidecar.yaml",
            variables,
            folder=paths.instance(instance.id),
            log=paths.envoy_log(instance.id),
            listener=EDGE if is_edge else "inbound",
        )

    def _environment(self, instance: Instance, *, proxyless: bool) -> dict[str, str]:
        """The contract with `mesh.runtime.environment`."""
        paths, service = self._paths, self._topology.services.get(instance.service)
        env = {
            **python_environment(self._root, paths),
            "NOURISH_SERVICE": instance.service,
            "NOURISH_INSTANCE": instance.id,
            "NOURISH_SUBSET": instance.subset,
            "NOURISH_LISTEN": f"unix:{paths.app_socket(instance.id)}",
            "NOURISH_EGRESS": f"unix:{paths.egress_socket(instance.id)}",
            "NOURISH_CACHE_DIR": str(paths.cache),
            "NOURISH_TELEMETRY": f"unix:{paths.telemetry_socket(instance.id)}",
            "NOURISH_OTLP": self._topology.telemetry.otlp,
            "NOURISH_SAMPLED": str(self._topology.telemetry.sampled),
        }
        if proxyless:
            env["NOURISH_EGRESS"], env["NOURISH_INBOUND"] = "xds:///egress", "127.0.0.1:0"
            env["NOURISH_IDENTITY_DIR"] = str(paths.identity / instance.service)
            env["GRPC_XDS_BOOTSTRAP"] = str(paths.xds_bootstrap(instance.id))
        if instance.service == EDGE:
            env["NOURISH_ADMIN"] = f"unix:{paths.admin_socket(instance.id)}"
        if service and service.database:
            env["NOURISH_DATABASE_URL"] = self._databases[instance.service]
            env["NOURISH_DATABASE_POOL"] = str(service.database.pool_size)
            env["NOURISH_DATABASE_REPLICAS"] = ",".join(self._topology.database.replicas)
            env["NOURISH_DATABASE_MAX_LAG"] = str(self._topology.database.max_lag_seconds)
            env["NOURISH_KEYS_DIR"] = str(paths.keys / instance.service)
        if service and service.events:
            env["NOURISH_EVENTS_URL"] = self._events_url
        return env

    # --- running ---

    async def _follow_values(self) -> None:
        """Follows what `mesh apply` records: replicas are the runner's business, all else the control plane's."""
        path, seen = self._paths.values, _modified(self._paths.values)
        while True:
            await asyncio.sleep(VALUES_POLL_SECONDS)
            if (modified := _modified(path)) not in (seen, None):
                seen = modified
                try:
                    await self.reconcile()
                except (LocalError, ValuesError) as error:
                    self._say("trouble", "mesh", f"cannot follow {path}: {error}")

    def _in_force(self) -> list[ValuesFile]:
        """What the control plane is to have: what was last applied, or at first what this start was given."""
        return read([self._paths.values]) if self._phase == "ready" else self._files

    def _part(self, topology: Topology) -> Topology:
        try:
            return topology.needed_by(self._only) if self._only else topology
        except ValueError as error:
            raise RefusedError(str(error)) from None

    def _endpoints(self) -> list[registry_pb2.Endpoint]:
        return [e for w in self._workloads.values() if (e := w.endpoint)]

    async def _stop_workloads(
        self, workloads: Iterable[Workload], withdrawn: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        async def stop(workload: Workload) -> None:
            self._say("stopping", workload.instance.id)
            await workload.stop(withdrawn or self._control.settle)
            self._workloads.pop(workload.instance.id, None)
            self._say("stopped", workload.instance.id)

        await asyncio.gather(*(stop(w) for w in workloads))
        self._changed()

    # --- telling ---

    def _keeper(self, name: str, program: Postgres | Nats | ControlPlane) -> Keeper:
        return Keeper(name, program, changed=self._changed, report=self._say)

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks = [t for t in self._tasks if not t.done()] + [task]
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Work in the background fails for reasons that are told elsewhere, or by a defect of ours."""
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, LocalError):
            self._say("trouble", "mesh", f"{task.get_name()} ended by a defect: {error!r}")

    def _say(self, kind: Kind, subject: str, text: str = "") -> None:
        with suppress(OSError):  # a full disk or a closed terminal must not end what runs
            self._on_event(Event(kind, subject, text))

    def _status(self, instance: str, text: str) -> None:
        if workload := self._workloads.get(instance):
            workload.status = text
        self._say("status", instance, text)

    def _changed(self) -> None:
        self._control.changed()
        keepers = (self._keep_postgres, self._keep_nats, self._keep_control)
        postgres, nats, control = (ProcessState(k.program.pid, k.up, k.restarts) for k in keepers)
        state = State(
            pid=os.getpid(),
            since=self._since,
            phase=self._phase,
            edge=self.edge,
            root=str(self._root),
            run=str(self._paths.run),
            postgres=postgres if postgres.pid else None,
            nats=nats if nats.pid else None,
            control=control,
            instances=tuple(w.state for w in self._workloads.values()),
        )
        with suppress(OSError):
            state.write(self._paths.state)


def _modified(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return None


def _issue_all(folder: Path, names: dict[str, str]) -> CertificateAuthority:
    tokens.signing_key(folder)
    authority = CertificateAuthority(folder)
    for service, spiffe_id in names.items():
        authority.issue(service, spiffe_id)
    return authority


def _done() -> asyncio.Future[None]:
    """Nothing to wait for."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


async def _all_ready(workloads: list[Workload], first: asyncio.Future[None]) -> None:
    await asyncio.shield(first)
    await asyncio.gather(*(w.ready() for w in workloads))


async def _first_failure(waits: Iterable[Coroutine[object, object, None]]) -> None:
    """Waits for all; the first that fails ends the waiting."""
    tasks = [asyncio.ensure_future(w) for w in waits]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels tasks and waits for their end, whatever it is."""
    pending = list(tasks)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
