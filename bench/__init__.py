"""Measurements, as ratios within one run. `make bench` runs them and writes results/ and RESULTS.md here."""
