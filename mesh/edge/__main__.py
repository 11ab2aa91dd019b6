"""The edge's own process, beside its Envoy: `python -m mesh.edge`."""

from mesh.edge.health import EdgeService
from mesh.runtime import run, serve, settings
from mesh.runtime.settings import required


async def main() -> None:
    """Serves EdgeService until told to stop."""
    admin = required(settings().admin, "NOURISH_ADMIN").removeprefix("unix:")
    await serve(EdgeService(admin))


run(main)
