"""The small mesh of the control plane's own tests."""

from mesh.xds.tests.conftest import contract, identity

__all__ = ["contract", "identity"]
