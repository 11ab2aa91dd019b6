"""Endpoints out of a Kubernetes cluster: the chart's EndpointSlices are listed, and then watched."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from mesh.xds import endpoint_slices
from mesh.xds.fleet import Fleet

log = logging.getLogger(__name__)

SOURCE = "kubernetes"
PAGE = 500  # slices a request
# A watch is asked for anew after so long. A connection that was cut without a word is found a little later.
WATCH_SECONDS, SILENCE_SECONDS, REQUEST_SECONDS = 60, 75.0, 30.0
# Tried again after 0.5 s, doubling to 30 s, less up to half of it.
FIRST_DELAY, MAX_DELAY = 0.5, 30.0
GATHER_SECONDS = 0.1  # of changes that follow one another, each is a compile of every kind of proxy


class GoneError(Exception):
    """The version to watch from is older than what the server remembers: all must be listed again."""


class ApiError(Exception):
    """The API server refuses, or says what it should not."""


class EndpointSlices:
    """Keeps the fleet's hosts at what the cluster says. What was last known stays while the API server is away.

    `account` is the folder of the pod's service account: token (which the kubelet renews), ca.crt and namespace.
    """

    def __init__(self, fleet: Fleet, account: Path) -> None:
        self._fleet = fleet
        self._account = account
        self._slices: dict[str, dict[str, Any]] = {}  # by name
        self._version = ""  # that the next watch begins at; empty: list first
        self._changed = asyncio.Event()
        self._failures = 0  # since a watch gave anything

    async def forever(self) -> None:
        """Follows the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._report())

    async def _follow(self) -> None:
        while True:
            try:
                async with self._client() as client:
                    while True:
                        await self._advance(client)
                        await asyncio.sleep(GATHER_SECONDS)  # a server may end each watch at once
            except GoneError as error:
                log.info("EndpointSlices: listing all again: %s", error)
                self._version = ""
            except (httpx.HTTPError, OSError, ApiError, ValueError, KeyError) as error:
                log.warning("EndpointSlices: %r; the endpoints stay as they are", error)
            except Exception:  # whatever a server answers, the endpoints must be followed
                log.exception("EndpointSlices: the endpoints stay as they are")
            self._failures += 1
            await asyncio.sleep(backoff(self._failures))

    async def _report(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                self._fleet.report(SOURCE, endpoint_slices.hosts(self._slices.values()))
            except Exception:  # a slice that is none
                log.exception("EndpointSlices: the endpoints stay as they are")
            await asyncio.sleep(GATHER_SECONDS)

    def _client(self) -> httpx.AsyncClient:
        """A new one after each failure: the authority's certificate may have been replaced."""
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        return httpx.AsyncClient(
            base_url=f"https://{f'[{host}]' if ':' in host else host}:{port}",
            verify=ssl.create_default_context(cafile=str(self._account / "ca.crt")),
            trust_env=False,
            timeout=httpx.Timeout(REQUEST_SECONDS, read=SILENCE_SECONDS),
        )

    async def _advance(self, client: httpx.AsyncClient) -> None:
        """One list, or one watch until the server ends it."""
        if not self._version:
            slices, self._version = await self._list(client)
            self._slices = slices
            self._changed.set()
        async for event in self._watch(client):
            self._take(event)
            self._failures = 0
        self._failures = 0

    async def _list(self, client: httpx.AsyncClient) -> tuple[dict[str, dict[str, Any]], str]:
        found: dict[str, dict[str, Any]] = {}
        query = {"labelSelector": endpoint_slices.SELECTOR, "limit": str(PAGE)}
        while True:
            answer = await client.get(self._path(), params=query, headers=self._headers())
            _check(answer.status_code, answer.text)
            page = answer.json()
            found |= {item["metadata"]["name"]: item for item in page["items"] or ()}
            if not (more := page["metadata"].get("continue")):
                return found, page["metadata"]["resourceVersion"]
            query["continue"] = more

    async def _watch(self, client: httpx.AsyncClient) -> AsyncIterator[dict[str, Any]]:
        query = {
            "labelSelector": endpoint_slices.SELECTOR,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async with client.stream("GET", self._path(), params=query, headers=self._headers()) as answer:
            if answer.status_code != HTTPStatus.OK:
                _check(answer.status_code, (await answer.aread()).decode(errors="replace"))
            async for line in answer.aiter_lines():
                if line:
                    yield json.loads(line)

    def _take(self, event: dict[str, Any]) -> None:
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            _check(item.get("code", 0), item.get("message", "no reason given"))
        name = item["metadata"].get("name", "")
        match kind:
            case "ADDED" | "MODIFIED":
                self._slices[name] = item
                self._changed.set()
            case "DELETED":
                self._slices.pop(name, None)
                self._changed.set()
            case "BOOKMARK":
                pass
            case _:
                raise ApiError(f"a watch event of the type {kind!r}")
        self._version = item["metadata"]["resourceVersion"]

    def _path(self) -> str:
        namespace = (self._account / "namespace").read_text().strip()
        return f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {(self._account / 'token').read_text().strip()}"}


def _check(status: int, text: str) -> None:
    if status == HTTPStatus.GONE:
        raise GoneError(text)
    if status != HTTPStatus.OK:
        hint = "; the chart's Role control-plane allows it" if status == HTTPStatus.FORBIDDEN else ""
        raise ApiError(f"status {status}: {text[:500]}{hint}")


def backoff(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    delay = min(MAX_DELAY, FIRST_DELAY * 2.0 ** max(0, failures - 1))
    return delay * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
