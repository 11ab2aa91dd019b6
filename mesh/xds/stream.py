"""One proxy's ADS stream as a state machine: requests and snapshots in, responses out. It holds no socket.

State-of-the-world variant of the xDS transport protocol
(https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol). Resources are kept by name with their content, so
that the incremental variant can be added beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf import any_pb2

from mesh.xds.snapshot import CDS, EDS, LDS, ORDER, RDS, SHORT, Resources, Snapshot, version

WILDCARD = (CDS, LDS)  # Envoy takes all clusters and listeners there are; the other types it names
POINTS_AT = {CDS: EDS, LDS: RDS}  # a changed cluster or listener warms until these are sent again


@dataclass
class Subscription:
    """What a proxy asked for of one type, what it was last sent, and what it said to that."""

    wildcard: bool
    names: frozenset[str] = frozenset()
    sent: dict[str, any_pb2.Any] = field(default_factory=dict)
    sent_version: str = ""
    nonce: str = ""
    answered: bool = True
    stale: bool = True  # must be sent even if the content is the same
    acknowledged: str = ""  # version
    error: str = ""

    @property
    def outstanding(self) -> bool:
        """Whether an answer is to come. A proxy that has just dropped its last name of a type gives none."""
        return not self.answered and (self.wildcard or bool(self.names))


class Stream:
    """The state of one stream. Feed it `request` and `publish`; send what `responses` yields.

    `on_publish` is called when there may be something new to send.
    """

    def __init__(self, on_publish: Callable[[], None] = lambda: None) -> None:
        self._on_publish = on_publish
        self.target: Snapshot | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._nonces = count(1)

    def publish(self, snapshot: Snapshot) -> None:
        """From now on this is what the proxy shall have."""
        self.target = snapshot
        self._on_publish()

    def request(self, request: Any) -> None:
        """Takes a DiscoveryRequest: a subscription, an ACK, a NACK, or any of these for an answer long replaced."""
        if request.type_url not in ORDER:
            return  # a type that we never serve: Envoy's initial fetch timeout covers it
        subscription = self._subscriptions.setdefault(request.type_url, Subscription(request.type_url in WILDCARD))
        subscription.names = frozenset(request.resource_names)
        if not request.response_nonce or request.response_nonce != subscription.nonce or subscription.answered:
            return
        subscription.answered = True
        subscription.error = request.error_detail.message if request.HasField("error_detail") else ""
        if not subscription.error:
            subscription.acknowledged = subscription.sent_version

    def responses(self) -> Iterator[DiscoveryResponse]:
        """What may be sent now: clusters with their endpoints, and when both are taken, listeners with their routes.

        Endpoints do not wait until the clusters are taken: Envoy acknowledges clusters only once they are warm.
        """
        if self.target is None:
            return
        for pointing, pointed_at in POINTS_AT.items():
            for type_url in (pointing, pointed_at):
                subscription = self._subscriptions.get(type_url)
                if subscription and not subscription.outstanding:
                    wanted = self._wanted(type_url, self.target)
                    if self._differs(type_url, wanted):
                        yield self._respond(type_url, subscription, wanted)
            if not (self._taken(pointing, self.target) and self._taken(pointed_at, self.target)):
                return

    @property
    def settled(self) -> bool:
        """Whether the proxy has answered, well or badly, to all of the last snapshot."""
        return self.target is not None and all(self._taken(type_url, self.target) for type_url in ORDER)

    @property
    def refusals(self) -> frozenset[tuple[str, str]]:
        """Open refusals as nonce and text: a later refusal is another one even if it says the same."""
        return frozenset((s.nonce, f"{SHORT[t]}: {s.error}") for t, s in self._subscriptions.items() if s.error)

    @property
    def errors(self) -> dict[str, str]:
        """Open refusals by short type name."""
        return {SHORT[t]: s.error for t, s in self._subscriptions.items() if s.error}

    @property
    def versions(self) -> dict[str, str]:
        """Acknowledged versions by short type name."""
        return {SHORT[t]: s.acknowledged for t, s in self._subscriptions.items() if s.acknowledged}

    def _respond(self, type_url: str, subscription: Subscription, wanted: Resources) -> DiscoveryResponse:
        pointed_at = self._subscriptions.get(POINTS_AT.get(type_url, ""))
        if pointed_at and any(subscription.sent.get(name) != resource for name, resource in wanted.items()):
            pointed_at.stale = True
        subscription.sent, subscription.sent_version = dict(wanted), version(wanted)
        subscription.nonce, subscription.answered, subscription.stale = str(next(self._nonces)), False, False
        subscription.error = ""
        return DiscoveryResponse(
            type_url=type_url,
            version_info=subscription.sent_version,
            nonce=subscription.nonce,
            resources=[wanted[name] for name in sorted(wanted)],
        )

    def _wanted(self, type_url: str, target: Snapshot) -> Resources:
        new, subscription = target.resources[type_url], self._subscriptions[type_url]
        if type_url not in WILDCARD:
            kept = {**subscription.sent, **new}
            return {name: kept[name] for name in subscription.names if name in kept}
        if type_url == CDS and not (self._taken(LDS, target) and self._taken(RDS, target)):
            return {**subscription.sent, **new}  # old routes may still point at old clusters
        return new

    def _taken(self, type_url: str, target: Snapshot) -> bool:
        """Whether the proxy has answered, well or badly, to this type, and nothing more is to be sent now."""
        subscription = self._subscriptions.get(type_url)
        if subscription is None:
            return not self._expected(type_url)
        settled = not subscription.outstanding and not self._differs(type_url, self._wanted(type_url, target))
        return settled and self._warm(type_url)

    def _differs(self, type_url: str, wanted: Resources) -> bool:
        """Whether the proxy must be sent this. Of the types that it names, what it no longer names needs no answer."""
        subscription = self._subscriptions[type_url]
        if type_url in WILDCARD:
            return subscription.stale or version(wanted) != subscription.sent_version
        changed = any(subscription.sent.get(name) != resource for name, resource in wanted.items())
        return changed or (subscription.stale and bool(wanted))

    def _expected(self, type_url: str) -> bool:
        """Whether the proxy will subscribe to this type by itself."""
        return self.target is not None and bool(self.target.resources[type_url])

    def _warm(self, type_url: str) -> bool:
        """Whether the proxy has asked for the endpoints of every cluster it has taken (and so for the routes)."""
        if type_url not in (EDS, RDS) or self.target is None:
            return True
        pointing = self._subscriptions.get(CDS if type_url == EDS else LDS)
        if pointing is None or pointing.error:
            return True
        return self.target.resources[type_url].keys() <= self._subscriptions[type_url].names
