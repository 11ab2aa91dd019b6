"""`mesh certificates`: who has which, until when, and their rotation by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.failure import Exit, Failure
from mesh.cli.output import console, print_json, table, until
from mesh.cli.place import json_option, paths
from mesh.topology import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.identity.ca import CertificateAuthority, Identity
    from mesh.identity.roots import Root


@click.group("certificates", invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show the roots and each service's certificate; `rotate` replaces them."""
    if context.invoked_subcommand is None:
        authority = _authority()
        if as_json:
            print_json(to_json(authority))
        else:
            _print(authority)


@command.command("rotate")
@click.option("--root", is_flag=True, help="Replace the root, and with it every certificate, without a gap in trust.")
@click.argument("services", nargs=-1)
@json_option
@click.pass_context
def rotate(context: click.Context, root: bool, services: tuple[str, ...], as_json: bool) -> None:
    """Replace the certificates of SERVICES (all if none is named) now, and wait until every proxy uses the new ones.

    It can be interrupted at any point: the same command goes on from there, and so does the runner within a minute.
    """
    from mesh.identity.rotation import RotationError

    if root and services:
        raise click.UsageError("--root replaces every certificate: name no services")
    as_json = as_json or bool(context.parent and context.parent.params["as_json"])
    authority = _authority()
    chosen = _chosen(authority, services)
    try:
        asyncio.run(_rotate(authority, chosen, root=root, quiet=as_json))
    except RotationError as error:
        raise Failure(str(error), Exit.NOT_READY) from None
    if as_json:
        print_json(to_json(authority))


def to_json(authority: CertificateAuthority) -> dict[str, Any]:
    """Roots, the newest first, which of them issues, and certificates by service."""
    return {
        "issuer": authority.root.common_name,
        "roots": [root_json(root) for root in authority.roots],
        "certificates": {identity.service: identity_json(identity) for identity in authority.issued()},
    }


def root_json(root: Root) -> dict[str, Any]:
    """A root in force."""
    return {"name": root.common_name, "expires": root.expires.isoformat(), "overdue": root.overdue}


def identity_json(identity: Identity) -> dict[str, Any]:
    """A service's certificate."""
    return {
        "spiffeId": identity.spiffe_id,
        "serial": identity.serial,
        "issuer": identity.issuer,
        "expires": identity.expires.isoformat(),
        "overdue": identity.overdue,
    }


def ends(what: Identity | Root) -> str:
    """When it ends, in red if it should have been replaced long ago."""
    return f"[red]{until(what.expires)}, overdue[/]" if what.overdue else until(what.expires)


def _authority() -> CertificateAuthority:
    from mesh.identity.ca import ROOTS, CertificateAuthority
    from mesh.identity.roots import Roots

    folder = paths().identity
    if not (folder / ROOTS).is_dir():
        raise Failure(f"there are no certificates in {folder}", Exit.NOT_RUNNING, "`mesh up` makes them")
    try:
        # A new one at this point would be trusted by no proxy that runs.
        if Roots(folder / ROOTS).issuer() is None:
            raise Failure(f"the root is gone from {folder / ROOTS}", Exit.STATE, "restart the mesh: a new one is made")
        return CertificateAuthority(folder)
    except ValueError as error:
        raise Failure(str(error), Exit.STATE) from None


def _chosen(authority: CertificateAuthority, services: tuple[str, ...]) -> Mapping[str, Identity]:
    known = {identity.service: identity for identity in authority.issued()}
    for service in services:
        if service not in known:
            raise click.UsageError(f"{service!r} has no certificate{did_you_mean(service, known)}")
    return {service: known[service] for service in services} if services else known


async def _rotate(authority: CertificateAuthority, chosen: Mapping[str, Identity], *, root: bool, quiet: bool) -> None:
    from mesh.identity.rotation import rotate_root, settle
    from mesh.local.certificates import lagging

    where = paths()
    say = (lambda _: None) if quiet else click.echo
    if root:
        await rotate_root(authority, lambda: lagging(where), say)
        return
    for service, identity in chosen.items():
        renewed = authority.issue(service, identity.spiffe_id)
        say(f"{service}: serial {renewed.serial}, ends {until(renewed.expires)}")
    await settle(lambda: lagging(where))


def _print(authority: CertificateAuthority) -> None:
    issuer = authority.root.number
    roots = [
        (root.common_name, "issues" if root.number == issuer else "is trusted", ends(root)) for root in authority.roots
    ]
    console().print(table(("ROOT", "", "ENDS"), roots))
    leaves = [(i.service, i.spiffe_id, i.issuer, ends(i)) for i in authority.issued()]
    console().print(table(("SERVICE", "IDENTITY", "ISSUER", "ENDS"), leaves))
    if authority.rotating:
        console().print("a root is being replaced: `mesh certificates rotate --root` goes on with it", style="yellow")
