"""What an edit of the values means, in words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from mesh.topology import Service, Topology


def revision(topology: Topology) -> str:
    """A hash of the values' meaning: comments, order and layout of the files do not change it."""
    text = json.dumps(asdict(topology), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def describe(old: Topology | None, new: Topology) -> list[str]:
    """A sentence for each difference, "food: canary 10 % -> 50 %"."""
    before = old.services if old else {}
    found = [f"{name}: added" for name in new.services if name not in before]
    found += [f"{name}: removed" for name in before if name not in new.services]
    for name, service in new.services.items():
        if name in before:
            found += _service(before[name], service)
    if old:
        found += _fields("edge", asdict(old.edge), asdict(new.edge))
        found += _fields("database", asdict(old.database), asdict(new.database))
        found += _fields("image", asdict(old.image), asdict(new.image))
        tops = ("namespace", "trust_domain")
        found += _fields("mesh", {k: getattr(old, k) for k in tops}, {k: getattr(new, k) for k in tops})
    return found


def _service(old: Service, new: Service) -> list[str]:
    found = []
    if old.canary.weight != new.canary.weight:
        found.append(f"{new.name}: canary {old.canary.weight} % -> {new.canary.weight} %")
    if old.canary.replicas != new.canary.replicas:
        found.append(f"{new.name}: canary replicas {old.canary.replicas} -> {new.canary.replicas}")
    found += [f"{new.name}: may call {callee}" for callee in new.calls if callee not in old.calls]
    found += [f"{new.name}: may no longer call {callee}" for callee in old.calls if callee not in new.calls]
    skip = {"name", "canary", "calls", "limits"}
    rest = [{k: v for k, v in asdict(service).items() if k not in skip} for service in (old, new)]
    return found + _fields(new.name, *rest) + _fields(f"{new.name}: limits", asdict(old.limits), asdict(new.limits))


def _fields(subject: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    changed = [key for key in new if old.get(key) != new[key]]
    return [f"{subject}: {key.replace('_', ' ')} {_show(old.get(key))} -> {_show(new[key])}" for key in changed]


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in value.items())
    return "none" if value in (None, "", ()) else str(value)
