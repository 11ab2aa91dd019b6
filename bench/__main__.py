"""`python -m bench [NAME ...]`: measures these, or all, and writes results/ and README.md. A new one is added here."""

import sys

from bench import (
    event_kills,
    events,
    fleet,
    outage,
    paths,
    proxyless,
    report,
    restarts,
    rollout,
    rotations,
    sidecars,
)

BENCHES: dict[str, report.Bench] = {
    "events": events,
    "event_kills": event_kills,
    "fleet": fleet,
    "outage": outage,
    "paths": paths,
    "proxyless": proxyless,
    "restarts": restarts,
    "rollout": rollout,
    "rotations": rotations,
    "sidecars": sidecars,
}

for name in sys.argv[1:] or BENCHES:
    report.save(name, BENCHES[name].run())
sys.stdout.write(report.write(BENCHES))
