"""Measurements, as ratios within one run. `make bench` runs them and writes results.json and README.md here."""
