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
POINTS_AT = {CDS: EDS, LDS: RDS}  # a changed cluster warms until its endpoints are sent again


@dataclass
class Subscription:
    """What a proxy asked for of one type, what it was last sent, and what it said to that."""

    names: frozenset[str] = frozenset()
    sent: dict[str, any_pb2.Any] = field(default_factory=dict)
    sent_version: str = ""
    nonce: str = ""
    answered: bool = True
    stale: bool = True  # must be sent even if the content is the same
    acknowledged: str = ""  # version
    error: str = ""


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
        subscription = self._subscriptions.setdefault(request.type_url, Subscription())
        if request.response_nonce and request.response_nonce != subscription.nonce:
            return
        subscription.names = frozenset(request.resource_names)
        if not request.response_nonce or subscription.answered:
            return
        subscription.answered = True
        subscription.error = request.error_detail.message if request.HasField("error_detail") else ""
        if not subscription.error:
            subscription.acknowledged = subscription.sent_version

    def responses(self) -> Iterator[DiscoveryResponse]:
        """What may be sent now. Each type waits until the types that it points at are taken."""
        if self.target is None:
            return
        for type_url in ORDER:
            subscription = self._subscriptions.get(type_url)
            if subscription is None:
                if self._expected(type_url):
                    return
                continue
            if not subscription.answered:
                return
            wanted = self._wanted(type_url, self.target)
            if subscription.stale or version(wanted) != subscription.sent_version:
                yield self._respond(type_url, subscription, wanted)
                return
            if not self._warm(type_url):
                return

    @property
    def settled(self) -> bool:
        """Whether the proxy has answered, well or badly, to all of the last snapshot."""
        return self.target is not None and all(self._settled(t, self.target) for t in ORDER)

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
        subscription.sent, subscription.sent_version = dict(wanted), version(wanted)
        subscription.nonce, subscription.answered, subscription.stale = str(next(self._nonces)), False, False
        pointed_at = self._subscriptions.get(POINTS_AT.get(type_url, ""))
        if pointed_at:
            pointed_at.stale = True
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
        if type_url == CDS and not (self._settled(LDS, target) and self._settled(RDS, target)):
            return {**subscription.sent, **new}  # old routes may still point at old clusters
        return new

    def _settled(self, type_url: str, target: Snapshot) -> bool:
        """Whether the proxy has answered, well or badly, to this type of the target, and nothing more is to be sent."""
        subscription = self._subscriptions.get(type_url)
        if subscription is None:
            return not self._expected(type_url)
        if type_url in WILDCARD:
            same = subscription.sent_version == target.versions[type_url]
        else:
            same = version(self._wanted(type_url, target)) == subscription.sent_version
        return same and subscription.answered and not subscription.stale and self._warm(type_url)

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
