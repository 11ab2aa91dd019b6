"""The food service: `python -m services.food`, started by the runner or Kubernetes."""

from pathlib import Path

from mesh.runtime import database, events, jobs, notify, run, serve
from services.food.service import FoodService, OperationService
from services.food.store import FoodStore
from services.food.usda import import_usda


async def main() -> None:
    """Brings schema and foods up to date, then serves until SIGTERM."""
    async with database(migrations=Path(__file__).parent / "migrations") as db:
        service = FoodService(FoodStore(db))
        async with events.carry(db), jobs.work(db, service):
            await import_usda(db, progress=notify.status)
            await serve(service, OperationService(db))


if __name__ == "__main__":
    run(main)
