"""`mesh config`: what one proxy is told, or has."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from mesh.cli.failure import Exit, Failure
from mesh.cli.output import print_json
from mesh.cli.place import always_json_option, paths, state


@click.command("config")
@click.argument("node")
@click.option("--live", is_flag=True, help="Ask the proxy itself for all that it has, not the control plane.")
@always_json_option
def command(node: str, live: bool) -> None:
    """Print the Envoy configuration of a proxy.

    NODE is an instance, such as food-0.

    Without --live: the resources that the control plane has for it, by type. With it: Envoy's own /config_dump.
    """
    state()
    print_json(asyncio.run(_live(node) if live else _published(node)))


async def _published(node: str) -> Any:
    from grpc import StatusCode
    from grpc.aio import AioRpcError
    from nourish.mesh.v1 import control_pb2

    from mesh.cli.control import control_plane

    async with control_plane(paths()) as stub:
        try:
            answer = await stub.GetNodeConfig(control_pb2.GetNodeConfigRequest(node=node), timeout=5)
        except AioRpcError as error:
            if error.code() is StatusCode.NOT_FOUND:
                raise Failure(error.details() or f"{node} is not known", hint="`mesh status` lists them") from None
            raise
    return json.loads(answer.json)


async def _live(node: str) -> Any:
    from mesh.admin import Admin, AdminError

    try:
        return json.loads(await Admin(paths().admin_socket(node)).get("/config_dump?include_eds"))
    except AdminError as error:
        hint = "`mesh status` lists those that run"
        raise Failure(f"the proxy of {node} does not answer: {error}", Exit.NOT_RUNNING, hint) from None
