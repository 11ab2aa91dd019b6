"""What the instances of a service agree on, decided by its PostgreSQL: who leads, who holds a lock, who has a place.

`Locks(db).hold(name)` and `.semaphore(name, n)` around what one, or n, do at a time; `lead(db, name, work)` around
`serve` for what one instance does as long as it lives; `admit` where a token arrives from elsewhere; `two_phase` for
one change of two databases, where a saga (`mesh.runtime.sagas`) would not do.
"""

from mesh.runtime.coordination.commits import TwoPhase, two_phase
from mesh.runtime.coordination.fencing import admit
from mesh.runtime.coordination.leader import lead
from mesh.runtime.coordination.locks import Held, Locks, Lost, Taken

__all__ = ["Held", "Locks", "Lost", "Taken", "TwoPhase", "admit", "lead", "two_phase"]
