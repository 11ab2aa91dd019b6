"""Events: published in the caller's transaction, carried by NATS, handled once.

`publish` writes to the outbox table; a relay in each service brings what is there to its stream; `subscribe` and
`observe` mark the methods that take events of others. `carry(db, *subscribers)` around `serve` runs all of it.
"""

from mesh.runtime.backoff import Backoff
from mesh.runtime.events.bus import Events, carry
from mesh.runtime.events.outbox import publish
from mesh.runtime.events.subscriptions import Rejected, observe, subscribe

__all__ = ["Backoff", "Events", "Rejected", "carry", "observe", "publish", "subscribe"]
