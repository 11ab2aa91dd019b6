"""The small mesh's control plane as a process: `python -m mesh.xds.tests.control_process SOCKET JWKS`."""

import sys
from pathlib import Path

import uvloop

from mesh.xds.fleet import Fleet
from mesh.xds.plan import Materials
from mesh.xds.server import run
from mesh.xds.tests.conftest import small_contract
from mesh.xds.tests.lab import LUA

if __name__ == "__main__":
    uvloop.run(run(f"unix:{sys.argv[1]}", Fleet(small_contract(), Materials(Path(sys.argv[2]).read_text(), LUA))))
