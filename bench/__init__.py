"""Measurements, as ratios within one run. `make bench` runs them all and writes bench/results.json and bench/README.md."""
