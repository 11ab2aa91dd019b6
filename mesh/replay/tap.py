"""Envoy's tap: which calls a sidecar is asked to show, and the stream in which it shows them."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mesh.xds.policies.tap import CONFIG_ID

BODY_BYTES = 256 << 10  # of each side of a call; Envoy holds them until the call ends
_NEXT = re.compile(r"\S")
_HEX = "0123456789abcdef"
_DIGITS = 3  # of the request id, by which calls are sampled: shares are exact to 1/4096


class TapError(Exception):
    """A sidecar cannot be tapped."""


def request(paths: Iterable[str], share: float) -> dict[str, Any]:
    """What to ask of the admin interface: whole calls of these gRPC paths, this share (0 to 1) of them."""
    # One by one: Envoy ends at once when it is asked for a regex of more steps than it allows.
    sampled = [_header("x-request-id", {"safe_regex": {"regex": f"(?:{below(share)}).*"}})] if share < 1 else []
    rules = [{"http_request_headers_match": {"headers": [_header(":path", {"exact": p}), *sampled]}} for p in paths]
    sink = {"format": "JSON_BODY_AS_BYTES", "streaming_admin": {}}
    return {
        "config_id": CONFIG_ID,
        "tap_config": {
            "match": {"or_match": {"rules": rules}} if len(rules) > 1 else rules[0],
            "output_config": {
                "sinks": [sink],
                "max_buffered_rx_bytes": BODY_BYTES,
                "max_buffered_tx_bytes": BODY_BYTES,
            },
        },
    }


def below(share: float) -> str:
    """A regex of the first digits of this share of all UUIDs. All calls of one request are in, or none."""
    most = 16**_DIGITS
    digits = f"{min(max(1, round(share * most)), most - 1):0{_DIGITS}x}"
    ways = []
    for at, digit in enumerate(digits):
        if digit != "0":
            ways.append(f"{digits[:at]}[{_HEX[: _HEX.index(digit)]}][{_HEX}]{{{_DIGITS - at - 1}}}")
    return "|".join(ways)


def _header(name: str, matcher: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "string_match": matcher}


@asynccontextmanager
async def tapped(admin: Path, asked: dict[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The calls that the sidecar with this admin socket shows from now on; leaving the block ends the tap.

    Raises:
        TapError: it does not answer, or refuses.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(str(admin))
    except OSError as error:
        raise TapError(f"{admin} does not answer: {error.strerror}") from error
    try:
        body = json.dumps(asked).encode()
        writer.write(b"POST /tap HTTP/1.1\r\nHost: admin\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        chunks = _chunks(reader)
        head = (await reader.readuntil(b"\r\n\r\n")).split(None, 2)
        if head[1] != b"200":
            raise TapError(f"{admin}: {(await anext(chunks, b'')).decode(errors='replace').strip()}")
        yield _documents(chunks)
    except asyncio.IncompleteReadError as error:
        raise TapError(f"{admin}: Envoy hung up") from error
    finally:
        writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The body of a chunked answer; ends with it, or with the connection."""
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
    except (asyncio.IncompleteReadError, ConnectionError):
        return


async def _documents(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """JSON documents, one after the other, wherever the chunks end."""
    decoder, utf8, text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")(), ""
    async for chunk in chunks:
        text, at = text + utf8.decode(chunk), 0
        while (found := _NEXT.search(text, at)) is not None:
            try:
                document, at = decoder.raw_decode(text, found.start())
            except ValueError:
                break  # the rest is on its way
            yield document
        text = text[at:]
