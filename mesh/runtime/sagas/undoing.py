"""What the called service asks before it takes back a call: what came of it? If nothing did, nothing ever will."""

from __future__ import annotations

from typing import TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime.answers import owner, place_of
from mesh.runtime.db import keys_of

_NEVER = b""  # no request has this digest: whoever comes with the id is refused
_KEY = "owner = :owner AND method = :method AND request_id = :request_id"
_BLOCK = sa.text(
    """
    INSERT INTO runtime_answer (owner, method, request_id, body) VALUES (:owner, :method, :request_id, :body)
    ON CONFLICT DO NOTHING
    """
)
_READ = sa.text(f"SELECT answer FROM runtime_answer WHERE {_KEY}")  # noqa: S608 - a constant

Response = TypeVar("Response", bound=Message)


async def undoing(
    connection: AsyncConnection, method: str, request_id: str, response: type[Response]
) -> Response | None:
    """What a call of the same caller was answered; None if it changed nothing, and then it never will.

    A call that is under way is waited for. One that has not come yet, for it was held up somewhere, is refused when it
    comes: a change that arrives behind its own undoing would stay for ever.

    Args:
        connection: in the transaction that takes back the change.
        method: the path of the call to be undone: "/nourish.stock.v1.StockService/Reserve".
        request_id: that it was made with, `sagas.Call.undoes` of the caller.
        response: its type.
    """
    key = {"owner": owner(), "method": method, "request_id": request_id.lower()}
    await connection.execute(_BLOCK, {**key, "body": _NEVER})
    answer = (await connection.execute(_READ, key)).scalar_one()
    if answer is None:
        return None
    return response.FromString(await keys_of(connection).load(connection, answer, place_of(key)))
