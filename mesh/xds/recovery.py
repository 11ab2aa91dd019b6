"""What proxies keep when the control plane starts with an empty memory: endpoints that nobody has told it yet."""

from __future__ import annotations

from collections.abc import Iterable

from mesh.xds.plan import Host

GRACE_SECONDS = 30.0  # sources report again after a third of their lease


class Recovery:
    """Which of the endpoints that a proxy brings to its stream may be taken from it.

    An endpoint goes when it was withdrawn here, or its lease ended here. One that this run of the control plane was
    never told of may be well, and its source on the way.
    """

    def __init__(self) -> None:
        self.over = False
        self._withdrawn: set[str] = set()  # services

    def note(self, before: Iterable[Host], now: Iterable[Host]) -> None:
        """Takes note of what was withdrawn between two reports."""
        left = {(h.service, h.address, h.port) for h in now}
        self._withdrawn |= {h.service for h in before if (h.service, h.address, h.port) not in left}

    def keeps(self, cluster: str, brought: int | None, known: int) -> bool:
        """Whether a proxy keeps the endpoints that it has of a cluster, rather than get those that are known here.

        It brought so many (None: it does not say how many). Fewer are given to it only when the grace is over, and none
        at all never, unless one of that service was withdrawn.
        """
        if cluster.rpartition(".")[0] in self._withdrawn:
            return False
        fewer = brought is None or known < brought
        return fewer and (known == 0 or not self.over)
