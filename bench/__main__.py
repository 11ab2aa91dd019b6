"""`python -m bench [NAME ...]`: measures these, or all, and writes results/ and README.md. A new one is added here."""

import sys

from bench import fleet, jobs, paths, report, restarts, rollout, rotations

BENCHES: dict[str, report.Bench] = {
    "fleet": fleet,
    "jobs": jobs,
    "paths": paths,
    "restarts": restarts,
    "rollout": rollout,
    "rotations": rotations,
}

for name in sys.argv[1:] or BENCHES:
    report.save(name, BENCHES[name].run())
sys.stdout.write(report.write(BENCHES))
