"""A service that answers every GetFood with a setting, loud if a flag says so: `python -m mesh.xds.tests.reader`."""

from __future__ import annotations

import os

from nourish.food.v1 import food_pb2, food_pb2_grpc

from mesh.runtime import Context, flags, run, serve, setting

GREETING = setting("reader.greeting", "by default")


class Reader(food_pb2_grpc.FoodServiceServicer):
    async def GetFood(self, request: food_pb2.GetFoodRequest, context: Context) -> food_pb2.Food:
        said = GREETING.value.upper() if await flags.on("reader.loud") else GREETING.value
        return food_pb2.Food(display_name=said, category=str(os.getpid()))


async def main() -> None:
    await serve(Reader())


if __name__ == "__main__":
    run(main)
