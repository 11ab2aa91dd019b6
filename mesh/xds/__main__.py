"""Runs the control plane: `python -m mesh.xds --socket unix:/run/nourish/control.sock --jwks jwks.json`."""

import logging
from pathlib import Path

import click
import uvloop

from mesh.xds.server import load, run

ROOT = Path(__file__).resolve().parents[2]


@click.command()
@click.option("--socket", required=True, help="Where to serve, a gRPC address: unix:/path.")
@click.option("--jwks", required=True, type=Path, help="The public keys of user tokens (JSON Web Key Set).")
@click.option("--contract", type=Path, default=ROOT / "gen/descriptors.binpb", help="The descriptor set.")
@click.option("--lua", type=Path, default=ROOT / "envoy", help="The folder of the edge's Lua sources.")
@click.option("--values", type=Path, help="A values file, or a folder of them as a ConfigMap mount has it, to watch.")
@click.option("--kubernetes", type=Path, help="The folder of a service account: endpoints come from its cluster.")
def main(*, socket: str, jwks: Path, contract: Path, lua: Path, values: Path | None, kubernetes: Path | None) -> None:
    """Serves ADS and ControlService until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    uvloop.run(run(socket, load(contract, jwks, lua), values, kubernetes))


main()
