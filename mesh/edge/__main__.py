"""The edge's own process, beside its Envoy: `python -m mesh.edge`."""

from mesh.edge.health import EdgeService
from mesh.runtime import environment, run, serve
from mesh.runtime.environment import required


async def main() -> None:
    """Serves EdgeService until told to stop."""
    admin = required(environment().admin, "NOURISH_ADMIN").removeprefix("unix:")
    await serve(EdgeService(admin))


run(main)
