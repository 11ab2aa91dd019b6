"""Starts the nutrition service."""

from nourish.food.v1.food_pb2_grpc import FoodServiceStub
from nourish.profile.v1.profile_pb2_grpc import ProfileServiceStub

from mesh.runtime import blocking, call, environment, notify, run, serve
from services.nutrition import parsing
from services.nutrition.service import NutritionService


async def main() -> None:
    """Loads the parser, then serves."""
    notify.status("loading the ingredient parser")
    await blocking(parsing.load, environment().cache_dir)
    await serve(NutritionService(call(FoodServiceStub), call(ProfileServiceStub)))


if __name__ == "__main__":
    run(main)
