"""The small mesh of the control plane's tests."""

from mesh.xds.tests.conftest import contract, identity, lab, short_dir

__all__ = ["contract", "identity", "lab", "short_dir"]
