"""Envoy's admin interface, on its Unix socket."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 2.0


class AdminError(ConnectionError):
    """Envoy's admin interface does not answer."""


class NobodyListensError(AdminError):
    """There is no Envoy on this socket."""


@dataclass(frozen=True)
class Host:
    """An instance of a service behind one cluster of an Envoy, and whether that Envoy would send it calls."""

    service: str
    instance: str
    address: str
    port: int
    healthy: bool


class Admin:
    """Asks one Envoy."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def get(self, path: str) -> bytes:
        """The body of a GET.

        Raises:
            NobodyListensError: no Envoy is there.
            AdminError: no answer in time, or not 200.
        """
        return await self._ask("GET", path)

    async def post(self, path: str) -> bytes:
        """The body of a POST; raises as `get` does."""
        return await self._ask("POST", path)

    async def listeners(self) -> dict[str, int]:
        """The TCP port of each listener that is bound, by name."""
        found: dict[str, int] = {}
        answer: dict[str, Any] = json.loads(await self.get("/listeners?format=json"))
        for status in answer.get("listener_statuses", ()):
            port = status.get("local_address", {}).get("socket_address", {}).get("port_value")
            if port:
                found[status["name"]] = port
        return found

    async def clusters(self) -> dict[str, Any]:
        """What Envoy knows of each cluster, for `services` and `hosts`; raises as `get` does."""
        answer: dict[str, Any] = json.loads(await self.get("/clusters?format=json"))
        return answer

    async def _ask(self, method: str, path: str) -> bytes:
        """HTTP/1.1, one connection a question: Envoy refuses HTTP/1.0."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(f"{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
                    answer = await reader.read()
                finally:
                    writer.close()
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NobodyListensError(f"{self._socket}: {error}") from error
        except (OSError, TimeoutError) as error:
            raise AdminError(f"{self._socket}: {error or 'no answer'}") from error
        try:
            status, body = _parse(answer)
        except HTTPException as error:
            raise AdminError(f"{method} {path}: {error!r}") from error
        if status != 200:
            raise AdminError(f"{method} {path}: status {status}")
        return body


def services(clusters: Mapping[str, Any]) -> list[str]:
    """The services that an Envoy has a cluster for, with hosts or without."""
    return sorted({service for cluster in clusters.get("cluster_statuses", ()) if (service := _service(cluster))})


def hosts(clusters: Mapping[str, Any]) -> Iterator[Host]:
    """The hosts of every cluster of a service. One that stands in for another subset is in two, and comes twice."""
    for cluster in clusters.get("cluster_statuses", ()):
        if service := _service(cluster):
            for host in cluster.get("host_statuses", ()):
                at = host["address"]["socket_address"]
                healthy = _healthy(host.get("health_status", {}))
                yield Host(service, host.get("hostname", ""), at["address"], at["port_value"], healthy)


def _service(cluster: Mapping[str, Any]) -> str:
    """Of a cluster "food.stable" the service; empty for the proxy's own clusters."""
    service, _, subset = cluster["name"].rpartition(".")
    return service if subset in ("stable", "canary") else ""


def _healthy(status: Mapping[str, Any]) -> bool:
    """Whether no check of Envoy's own has failed and the control plane does not say otherwise."""
    failed = [key for key, value in status.items() if key.startswith("failed_") and value]
    return not failed and status.get("eds_health_status", "HEALTHY") in ("HEALTHY", "UNKNOWN")


def _parse(answer: bytes) -> tuple[int, bytes]:
    """Status and body (chunked or not) of a whole HTTP/1.1 answer."""
    response = HTTPResponse(_Received(answer))  # type: ignore[arg-type]  # it asks for no more than `makefile`
    response.begin()
    return response.status, response.read()


class _Received:
    """A whole answer, for http.client to take apart: Envoy sends a long one in chunks."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)
