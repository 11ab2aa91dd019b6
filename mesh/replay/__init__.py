"""Recorded calls: what may be kept of them, and whether two answers to one call are the same. Pure functions."""
