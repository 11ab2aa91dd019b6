"""`python -m bench`: measures and writes bench/results.json and bench/README.md. BENCH_CALLS sets the calls per path."""

import sys

from bench import paths, report

sys.stdout.write(report.write(paths.run()))
