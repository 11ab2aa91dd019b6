"""What the runner or Kubernetes tells a process, by environment. The whole contract between the two stands here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """One process of a service."""

    service: str
    instance: str
    subset: str
    listen: str  # gRPC address of this process, behind its sidecar: "unix:/run/nourish/app.sock"
    egress: str  # gRPC address of the sidecar, for every call to another service; "xds:///egress" without a sidecar
    inbound: str  # gRPC address that takes calls from the mesh in this process; empty behind a sidecar
    identity: Path  # the folder of this service's certificate, for a process without a sidecar
    admin: str  # gRPC-style address of Envoy's admin, only the edge reads it
    database_url: str  # "postgresql://...", empty for a service without a database
    database_pool: int  # connections of this process
    database_replicas: tuple[str, ...]  # "host:port" of its read-only copies
    database_max_lag: float  # seconds that a copy may be older and still be read
    keys_dir: Path | None  # the folder of the keys that encrypt what is sensitive
    events_url: str  # "nats://...", empty for a service without events
    max_calls: int  # that run in this process at once; one more is told to come back
    max_streams: int
    threads: int  # for work that blocks
    processes: int  # for work that keeps a core busy
    jobs: int  # that run in this process at once, if its service has any; 0 for none
    telemetry: str  # the socket on which this process tells of itself; empty for none
    otlp: str  # host:port of the OpenTelemetry collector, empty for none
    sampled: float  # of the traces that begin in this process, the share that is recorded
    cache_dir: Path  # may be filled with what can be made again


@cache
def environment() -> Environment:
    """Reads the environment once; a missing value fails where it is used, naming the variable."""
    env = os.environ
    service = env.get("NOURISH_SERVICE", "")
    return Environment(
        service=service,
        instance=env.get("NOURISH_INSTANCE", f"{service}-0"),
        subset=env.get("NOURISH_SUBSET", "stable"),
        listen=env.get("NOURISH_LISTEN", ""),
        egress=env.get("NOURISH_EGRESS", ""),
        inbound=env.get("NOURISH_INBOUND", ""),
        identity=Path(env.get("NOURISH_IDENTITY_DIR", "")),
        admin=env.get("NOURISH_ADMIN", ""),
        database_url=env.get("NOURISH_DATABASE_URL", ""),
        database_pool=int(env.get("NOURISH_DATABASE_POOL", "5")),
        database_replicas=tuple(filter(None, env.get("NOURISH_DATABASE_REPLICAS", "").split(","))),
        database_max_lag=float(env.get("NOURISH_DATABASE_MAX_LAG", "5")),
        keys_dir=Path(env["NOURISH_KEYS_DIR"]) if env.get("NOURISH_KEYS_DIR") else None,
        events_url=env.get("NOURISH_EVENTS_URL", ""),
        # 256 calls of 10 ms CPU are 2.6 s of one core: what would wait behind more misses the usual deadline of 3 s.
        max_calls=int(env.get("NOURISH_MAX_CALLS", "256")),
        max_streams=int(env.get("NOURISH_MAX_STREAMS", "256")),
        threads=int(env.get("NOURISH_THREADS", "8")),
        processes=int(env.get("NOURISH_PROCESSES", "1")),
        jobs=int(env.get("NOURISH_JOBS", "4")),
        telemetry=env.get("NOURISH_TELEMETRY", "").removeprefix("unix:"),
        otlp=env.get("NOURISH_OTLP", ""),
        sampled=float(env.get("NOURISH_SAMPLED", "1")),
        cache_dir=Path(env.get("NOURISH_CACHE_DIR", ".mesh/cache")),
    )


def required(value: str, variable: str) -> str:
    """Returns `value`, or says which variable is missing.

    Raises:
        RuntimeError: the value is empty.
    """
    if not value:
        raise RuntimeError(f"{variable} is not set: start this service with `mesh up`, or set it as the chart does")
    return value
