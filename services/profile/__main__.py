"""`python -m services.profile`."""

from pathlib import Path

from mesh.runtime import database, run, serve
from services.profile.service import ProfileService
from services.profile.store import ProfileStore


async def main() -> None:
    """Opens the database and serves until told to stop."""
    async with database(migrations=Path(__file__).parent / "migrations") as db:
        await serve(ProfileService(ProfileStore(db)))


if __name__ == "__main__":
    run(main)
