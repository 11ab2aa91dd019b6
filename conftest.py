"""Fixtures for every test: see `mesh.runtime.testing`."""

pytest_plugins = ["mesh.runtime.testing"]
