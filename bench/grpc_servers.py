"""gRPC servers around one handler: `python -m bench.grpc_servers KIND READY FOOD.json [IDENTITY]`.

KIND is bare or serve, which listen on the socket READY, or plain or tls: all of `serve()` but its sidecar, or what
stands in for one, on a TCP port that is written to the file READY.
"""

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
from mesh.runtime.proxyless import credentials
from mesh.runtime.server import build_server


class Foods(food_pb2_grpc.FoodServiceServicer):
    """Answers from memory: what is measured is the server around it."""

    def __init__(self, food: food_pb2.Food) -> None:
        self._foods = {food.name: food}

    async def GetFood(self, request: food_pb2.GetFoodRequest, context: Any) -> food_pb2.Food:
        return self._foods[request.name]


async def main(kind: str, socket: str, food: str, identity: str = "") -> None:
    """Serves until terminated."""
    foods = Foods(  # type: ignore[abstract] # the other methods answer UNIMPLEMENTED
        json_format.Parse(Path(food).read_text(), food_pb2.Food())
    )
    if kind == "serve":
        await serve(foods, address=f"unix:{socket}")
        return
    if kind in ("plain", "tls"):
        await _on_tcp(foods, Path(socket), Path(identity) if kind == "tls" else None)
        return
    server = grpc.aio.server()
    food_pb2_grpc.add_FoodServiceServicer_to_server(foods, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    await asyncio.Event().wait()


async def _on_tcp(foods: Foods, ready: Path, identity: Path | None) -> None:
    server = build_server(foods).grpc
    address = "127.0.0.1:0"
    port = (
        server.add_secure_port(address, credentials.server(identity)) if identity else server.add_insecure_port(address)
    )
    await server.start()
    written = ready.with_suffix(".new")
    written.write_text(str(port))
    written.rename(ready)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
