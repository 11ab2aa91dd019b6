"""`python -m mesh.pytest HOME NOTE MINUTES`: ends a kept mesh that nobody uses any more."""

import sys
from pathlib import Path

from mesh.pytest.kept import end_when_idle

end_when_idle(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
