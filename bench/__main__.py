"""`python -m bench`: measures, writes results.json and README.md here. BENCH_CALLS sets the calls per path."""

import sys

from bench import paths, report

sys.stdout.write(report.write(paths.run()))
