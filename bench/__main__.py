"""`python -m bench [NAME ...]`: measures these, or all, and writes results/ and RESULTS.md. A new one is added here."""

import sys
from importlib import import_module

from bench import report

ENGINES = ("cache", "database", "event_kills", "events", "jobs", "saga_kills", "start", "telemetry")
MESH = ("fleet", "kept", "outage", "paths", "proxyless", "restarts", "rollout", "rotations", "sidecars")
BENCHES: dict[str, report.Bench] = {name: import_module(f"bench.{name}") for name in (*ENGINES, *MESH)}

for name in sys.argv[1:] or BENCHES:
    report.save(name, BENCHES[name].run())
sys.stdout.write(report.write(BENCHES))
