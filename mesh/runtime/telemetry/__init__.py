"""What a process tells of itself: spans of the traces that it takes part in, what it counts, and where both are got.

A service does nothing for it. One that has figures of its own gives a function that reads them:
`telemetry.gauge("shelf_books", "Books on the shelf.", lambda: len(shelf))`.
"""

from mesh.runtime.telemetry.metrics import Labels, Tally, counter, gauge
from mesh.runtime.telemetry.running import running
from mesh.runtime.telemetry.traces import span

__all__ = ["Labels", "Tally", "counter", "gauge", "running", "span"]
