"""What the called service asks before it takes back a call: what came of it? If nothing did, nothing ever will."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.runtime.answers import closed

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
    answer = await closed(connection, method, request_id)
    return None if answer is None else response.FromString(answer)
