"""`mesh status`: what runs, how it is, and what each proxy has."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.certificates import ends, identity_json, root_json
from mesh.cli.failure import Failure
from mesh.cli.output import ago, console, print_json, span, table
from mesh.cli.place import json_option, paths, state

if TYPE_CHECKING:
    from nourish.mesh.v1 import control_pb2, registry_pb2

    from mesh.identity.ca import Identity
    from mesh.identity.roots import Root
    from mesh.local.events import InstanceState, ProcessState, State
    from mesh.local.paths import Paths


@click.command("status")
@json_option
def command(as_json: bool) -> None:
    """Show services, instances, processes, proxies and certificates."""
    runs, where = state(), paths()
    mesh, sources = asyncio.run(_asked(where))
    certificates = _certificates(where, runs)
    if as_json:
        print_json(to_json(runs, mesh, certificates, _roots(where)) | {"sources": _sources_json(sources)})
    else:
        _print(runs, mesh, certificates)
        _print_outside(sources)
        _print_roots(_roots(where))


def to_json(
    runs: State, mesh: control_pb2.GetMeshResponse | None, certificates: dict[str, Identity], roots: list[Root]
) -> dict[str, Any]:
    """The runner's state, with the control plane's view and the certificates. `control.answers` says if it has one."""
    from google.protobuf.json_format import MessageToDict

    content = asdict(runs)
    content["control"]["answers"] = mesh is not None
    view = MessageToDict(mesh, always_print_fields_with_no_presence=True) if mesh else {}
    keys = {"revision": "", "epoch": "", "proxies": [], "endpoints": [], "canaryWeights": {}, "valuesError": ""}
    content.update({key: view.get(key, empty) for key, empty in keys.items()})
    content["certificates"] = {service: identity_json(identity) for service, identity in certificates.items()}
    content["roots"] = [root_json(root) for root in roots]
    return content


async def _asked(where: Paths) -> tuple[control_pb2.GetMeshResponse | None, list[registry_pb2.EndpointSource]]:
    """What the control plane has published, and who told it of endpoints."""
    from nourish.mesh.v1 import control_pb2, registry_pb2
    from nourish.mesh.v1.control_pb2_grpc import ControlServiceStub
    from nourish.mesh.v1.registry_pb2_grpc import RegistryServiceStub

    from mesh.cli.control import channel

    try:
        async with channel(where) as opened:
            mesh = await ControlServiceStub(opened).GetMesh(control_pb2.GetMeshRequest(), timeout=5)
            told = await RegistryServiceStub(opened).ListEndpoints(registry_pb2.ListEndpointsRequest(), timeout=5)
    except Failure:
        return None, []
    return mesh, list(told.sources)


def _sources_json(sources: list[registry_pb2.EndpointSource]) -> list[dict[str, Any]]:
    from google.protobuf.json_format import MessageToDict

    return [MessageToDict(source) for source in sources]


def _print_outside(sources: list[registry_pb2.EndpointSource]) -> None:
    """Endpoints that others than the runner hold, and for how long; the runner's are its instances."""
    from mesh.local.control import SOURCE

    rows = [
        (e.instance, e.subset, source.name, f"{e.address}:{e.port}", _lease(source))
        for source in sources
        if source.name != SOURCE
        for e in source.endpoints
    ]
    if rows:
        console().print(table(("OUTSIDE INSTANCE", "SUBSET", "TOLD BY", "ADDRESS", "LEASE ENDS"), rows))


def _lease(source: registry_pb2.EndpointSource) -> str:
    return f"in {span(source.lease_left.ToTimedelta().total_seconds())}" if source.HasField("lease_left") else "never"


def _certificates(where: Paths, runs: State) -> dict[str, Identity]:
    from mesh.identity.ca import read

    found: dict[str, Identity] = {}
    for service in dict.fromkeys(instance.service for instance in runs.instances):
        try:
            found[service] = read(where.identity / service)
        except (OSError, ValueError):
            continue
    return found


def _roots(where: Paths) -> list[Root]:
    from mesh.identity.ca import ROOTS
    from mesh.identity.roots import Roots

    try:
        return Roots(where.identity / ROOTS).all()
    except (OSError, ValueError):
        return []


def _print_roots(roots: list[Root]) -> None:
    out = console()
    for root in roots:
        out.print(f"{root.common_name} ends {ends(root)}")
    if not roots:
        out.print("no root can be read: see `mesh certificates`", style="red")
    if len(roots) > 1:
        out.print("a root is being replaced: see `mesh certificates`", style="yellow")


def _print(runs: State, mesh: control_pb2.GetMeshResponse | None, certificates: dict[str, Identity]) -> None:
    out = console()
    since = datetime.fromisoformat(runs.since)
    colour = "green" if runs.phase == "ready" else "yellow"
    out.print(f"[bold {colour}]{runs.phase}[/]  {runs.edge}  for {ago(since)}")
    proxies = {proxy.node: proxy for proxy in mesh.proxies} if mesh else {}
    weights = dict(mesh.canary_weights) if mesh else {}
    columns = ("INSTANCE", "SUBSET", "STATE", "APP", "PROXY", "MESH PORT", "CONFIG", "CERTIFICATE ENDS", "RESTARTS")
    rows = [
        (
            instance.id,
            _subset(instance, weights),
            "[green]ready[/]" if instance.ready else f"[yellow]{instance.status or 'not ready'}[/]",
            _process(instance.app),
            _process(instance.proxy) if instance.data_plane == "sidecar" else instance.data_plane,
            str(instance.port or "-"),
            _config(proxies.get(instance.id), known=mesh is not None),
            _certificate(certificates.get(instance.service)),
            str(instance.app.restarts + instance.proxy.restarts),
        )
        for instance in runs.instances
    ]
    out.print(table(columns, rows))
    control = _process(runs.control) if mesh else "[red]does not answer (traffic goes on): see `mesh logs control`[/]"
    postgres, nats = (_process(engine) if engine else "not ours" for engine in (runs.postgres, runs.nats))
    out.print(f"control plane {control}, PostgreSQL {postgres}, NATS {nats}")
    if mesh:
        out.print(f"values {mesh.revision[:12]}", style="dim")
        if mesh.values_error:
            out.print(f"the values file is not in force: {mesh.values_error}", style="red", markup=False)


def _subset(instance: InstanceState, weights: dict[str, int]) -> str:
    weight = weights.get(instance.service)
    if not weight:
        return instance.subset
    return f"{instance.subset} {weight if instance.subset == 'canary' else 100 - weight} %"


def _process(process: ProcessState) -> str:
    if process.up:
        return f"pid {process.pid}"
    return f"[yellow]starting, pid {process.pid}[/]" if process.pid else "[red]down[/]"


def _config(proxy: control_pb2.Proxy | None, *, known: bool) -> str:
    if not known:
        return "[dim]unknown[/]"
    if proxy is None or not proxy.connected:
        return "[red]not connected[/]"
    if proxy.error:
        return f"[red]refused: {proxy.error}[/]"
    return "[green]synced[/]" if proxy.synced else "[yellow]waiting[/]"


def _certificate(identity: Identity | None) -> str:
    if identity is None:
        return "[red]none[/]"
    return ends(identity)
