"""What (d) is held against: a FastAPI gateway that proxies with httpx to a FastAPI service, as teams write them.

The service keeps the food in memory as a pydantic model and answers with a `response_model`; the gateway passes bytes
on. Both run on uvloop and httptools, one worker each, with their access logs on, as the proxies have theirs.
`python -m bench.fastapi_servers service|gateway SOCKET ARGUMENT` takes the food's JSON file for the service, the
service's socket for the gateway.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Portion(BaseModel):
    """A household measure."""

    description: str
    grams: float


class Food(BaseModel):
    """The same food as in the contract."""

    name: str
    displayName: str  # noqa: N815 - JSON names
    category: str | None = None
    source: str
    nutrients: dict[str, float]
    portions: list[Portion] = []
    etag: str | None = None
    createTime: str | None = None  # noqa: N815
    updateTime: str | None = None  # noqa: N815


def service(food_file: str) -> FastAPI:
    """The service: one food, from memory."""
    app = FastAPI()
    food = Food.model_validate_json(Path(food_file).read_text())
    foods = {food.name: food}

    @app.get("/api/v1/foods/{food_id}", response_model=Food)
    async def get_food(food_id: str) -> Food:
        found = foods.get(f"foods/{food_id}")
        if found is None:
            raise HTTPException(404)
        return found

    return app


def gateway(upstream: str) -> FastAPI:
    """The gateway: passes a request on and the answer back."""
    client: list[httpx.AsyncClient] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=upstream), base_url="http://service") as c:
            client.append(c)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.api_route("/{path:path}", methods=["GET", "POST", "PATCH", "DELETE"])
    async def proxy(path: str, request: Request) -> Any:
        headers = {k: v for k, v in request.headers.items() if k not in ("host", "content-length")}
        body = await request.body()
        answer = await client[0].request(
            request.method, f"/{path}", params=request.query_params, headers=headers, content=body
        )
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    return app


if __name__ == "__main__":
    kind, socket, argument = sys.argv[1:]
    made = service(argument) if kind == "service" else gateway(argument)
    uvicorn.run(made, uds=socket, loop="uvloop", http="httptools")
