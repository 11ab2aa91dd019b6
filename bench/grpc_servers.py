"""The bare and the full gRPC server around one handler: `python -m bench.grpc_servers bare|serve SOCKET FOOD.json`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop
from google.protobuf import json_format
from nourish.food.v1 import food_pb2, food_pb2_grpc

from mesh.runtime import serve


class Foods(food_pb2_grpc.FoodServiceServicer):
    """Answers from memory: what is measured is the server around it."""

    def __init__(self, food: food_pb2.Food) -> None:
        self._foods = {food.name: food}

    async def GetFood(self, request: food_pb2.GetFoodRequest, context: Any) -> food_pb2.Food:
        return self._foods[request.name]


async def main(kind: str, socket: str, food: str) -> None:
    """Serves until terminated."""
    foods = Foods(  # type: ignore[abstract] # the other methods answer UNIMPLEMENTED
        json_format.Parse(Path(food).read_text(), food_pb2.Food())
    )
    if kind == "serve":
        await serve(foods, address=f"unix:{socket}")
        return
    server = grpc.aio.server()
    food_pb2_grpc.add_FoodServiceServicer_to_server(foods, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
