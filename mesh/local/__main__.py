"""`python -m mesh.local <request as JSON> <descriptor to write events to>`: started by `background.detach`."""

import sys

from mesh.local.daemon import main

sys.exit(main(*sys.argv[1:]))
