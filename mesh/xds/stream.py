"""One proxy's ADS stream as a state machine: requests and snapshots in, responses out. It holds no socket.

What is sent when is decided here, once, for both variants of the xDS transport protocol
(https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol): `StateOfTheWorld` below, which gRPC's own client
speaks, and `Incremental` in `incremental.py`, which the sidecars speak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse

from mesh.xds.snapshot import CDS, EDS, LDS, ORDER, RDS, SHORT, Snapshot, Versioned, version

WILDCARD = (CDS, LDS)  # Envoy takes all clusters and listeners there are; the other types it names
POINTS_AT = {CDS: EDS, LDS: RDS}  # a changed cluster or listener warms until these are sent again

Keeps = Callable[[str, int | None, int], bool]  # as `Recovery.keeps`


@dataclass
class Subscription:
    """What a proxy asked for of one type, what it was last sent, and what it said to that."""

    wildcard: bool
    names: frozenset[str] = frozenset()
    sent: dict[str, Versioned] = field(default_factory=dict)
    sent_version: str = ""
    in_flight: tuple[str, ...] = ()  # what the last response held
    nonce: str = ""
    answered: bool = True
    new: bool = True  # must be answered even with nothing
    stale: set[str] = field(default_factory=set)  # must be sent even if the content is the same
    acknowledged: str = ""  # version
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)  # nonce and text of open refusals, by resource
    alone: set[str] = field(default_factory=set)  # were refused together: are sent again one at a time
    brought: dict[str, int | None] = field(default_factory=dict)  # endpoints of an earlier stream: how many, by cluster

    @property
    def outstanding(self) -> bool:
        """Whether an answer is to come. A proxy that has just dropped its last name of a type gives none."""
        return not self.answered and (self.wildcard or bool(self.names))

    def changed(self, wanted: Mapping[str, Versioned]) -> list[str]:
        """What must be sent of this. What a proxy has and we do not know cannot be sent, and need not be."""
        sent, stale = self.sent, self.stale
        return [
            name
            for name, entry in wanted.items()
            if entry.resource is not None and (name in stale or name not in sent or sent[name].version != entry.version)
        ]


class Stream:
    """The state of one stream. Feed it `request` and `publish`; send what `responses` yields.

    `on_publish` is called when there may be something new to send. `keeps` decides on endpoints that the proxy brings.
    """

    def __init__(self, on_publish: Callable[[], None] = lambda: None, keeps: Keeps = lambda *_: False) -> None:
        self._on_publish = on_publish
        self._keeps = keeps
        self.target: Snapshot | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._nonces = count(1)
        self._forget()

    def _forget(self) -> None:
        """What was worked out of the state holds no longer. A fleet is asked for it far more often than it changes."""
        self._settled: bool | None = None
        self._refusals: frozenset[tuple[str, str]] | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """From now on this is what the proxy shall have."""
        self.target = snapshot
        self._forget()
        self._on_publish()

    def request(self, request: Any) -> None:
        """Takes a subscription, an ACK, a NACK, or any of these for an answer long replaced."""
        if request.type_url not in ORDER:
            return  # a type that we never serve: Envoy's initial fetch timeout covers it
        self._forget()
        if request.type_url not in self._subscriptions:
            brought = self._brought(request) if request.type_url == EDS else {}
            self._subscriptions[request.type_url] = Subscription(self._takes_all(request), brought=brought)
        subscription = self._subscriptions[request.type_url]
        self._subscribe(subscription, request)
        if not request.response_nonce or request.response_nonce != subscription.nonce or subscription.answered:
            return
        subscription.answered = True
        if request.HasField("error_detail"):
            self._refuse(subscription, request.error_detail.message)
        elif not subscription.refused:
            subscription.acknowledged = subscription.sent_version

    def responses(self) -> Iterator[Any]:
        """What may be sent now: clusters with their endpoints, and when both are taken, listeners with their routes.

        Endpoints do not wait until the clusters are taken: Envoy acknowledges clusters only once they are warm.
        """
        if self.target is None or self._resumes(self.target):
            return
        for pointing, pointed_at in POINTS_AT.items():
            for type_url in (pointing, pointed_at):
                subscription = self._subscriptions.get(type_url)
                if subscription and not subscription.outstanding:
                    wanted = self._wanted(type_url, self.target)
                    if self._differs(subscription, wanted):
                        yield self._respond(type_url, subscription, wanted)
                    elif not subscription.acknowledged and not subscription.new and not subscription.refused:
                        subscription.acknowledged = version(wanted)  # it came with all of it
            taken = self._taken(pointing, self.target) and self._taken(pointed_at, self.target)
            if not taken and not self._picks:  # who picks by name asks for what is pointed at when it has the pointer
                return

    @property
    def settled(self) -> bool:
        """Whether the proxy has answered, well or badly, to all of the last snapshot."""
        if self._settled is None:
            target = self.target
            self._settled = target is not None and all(self._taken(type_url, target) for type_url in ORDER)
        return self._settled

    @property
    def refusals(self) -> frozenset[tuple[str, str]]:
        """Open refusals as nonce and text: a later refusal is another one even if it says the same."""
        if self._refusals is None:
            open_ = [(t, refusal) for t, s in self._subscriptions.items() for refusal in s.refused.values()]
            self._refusals = frozenset((nonce, f"{SHORT[t]}: {text}") for t, (nonce, text) in open_)
        return self._refusals

    @property
    def errors(self) -> dict[str, str]:
        """Open refusals by short type name."""
        subscriptions = [(SHORT[t], s.refused) for t, s in self._subscriptions.items() if s.refused]
        return {short: "; ".join(sorted({text for _, text in refused.values()})) for short, refused in subscriptions}

    @property
    def versions(self) -> dict[str, str]:
        """Acknowledged versions by short type name."""
        return {SHORT[t]: s.acknowledged for t, s in self._subscriptions.items() if s.acknowledged}

    def kept(self) -> frozenset[str]:
        """Clusters of which the proxy keeps the endpoints that it brought, and which therefore stay as they are."""
        eds, target = self._subscriptions.get(EDS), self.target
        if eds is None or target is None:
            return frozenset()
        return frozenset(n for n, had in eds.brought.items() if self._keeps(n, had, target.hosts.get(n, 0)))

    def _resumes(self, target: Snapshot) -> bool:
        """Whether the proxy has clusters of an earlier stream, and is yet to say which endpoints it has for them."""
        cds = self._subscriptions.get(CDS)
        if cds is None or EDS in self._subscriptions:
            return False
        return any(entry.resource is None and name in target.resources[EDS] for name, entry in cds.sent.items())

    def _brought(self, request: Any) -> dict[str, int | None]:
        """The endpoints that a proxy has when it first asks for some: how many by cluster, None if it does not say."""
        raise NotImplementedError

    @property
    def _picks(self) -> bool:
        """Whether this client names its listeners, and so all else, as gRPC's own does."""
        listeners = self._subscriptions.get(LDS)
        return listeners is not None and not listeners.wildcard

    def _takes_all(self, request: Any) -> bool:
        """Whether a first request of a type is for all there is of it: it names none, or "*"."""
        names = set(self._named(request))
        return request.type_url in WILDCARD and (not names or "*" in names)

    def _named(self, request: Any) -> Iterable[str]:
        raise NotImplementedError

    def _subscribe(self, subscription: Subscription, request: Any) -> None:
        raise NotImplementedError

    def _refuse(self, subscription: Subscription, text: str) -> None:
        raise NotImplementedError

    def _differs(self, subscription: Subscription, wanted: Mapping[str, Versioned]) -> bool:
        """Whether the proxy must be sent this. Of the types that it names, what it no longer names needs no answer."""
        if subscription.wildcard and (subscription.new or subscription.sent.keys() - wanted.keys()):
            return True
        return bool(subscription.changed(wanted))

    def _encode(self, type_url: str, subscription: Subscription, wanted: Mapping[str, Versioned]) -> Any:
        """The response that brings the proxy to `wanted`; notes in `subscription` what is sent."""
        raise NotImplementedError

    def _respond(self, type_url: str, subscription: Subscription, wanted: Mapping[str, Versioned]) -> Any:
        self._forget()
        before = subscription.sent
        subscription.nonce, subscription.answered, subscription.new = str(next(self._nonces)), False, False
        response = self._encode(type_url, subscription, wanted)
        subscription.sent_version = version(subscription.sent)
        subscription.stale.difference_update(subscription.in_flight)
        for name in subscription.in_flight:
            subscription.brought.pop(name, None)
        changed = {n for n in subscription.in_flight if n not in before or before[n].version != wanted[n].version}
        pointed_at = self._subscriptions.get(POINTS_AT.get(type_url, ""))
        if pointed_at and changed:
            pointed_at.stale |= changed & pointed_at.names if type_url == CDS else pointed_at.names
        return response

    def _wanted(self, type_url: str, target: Snapshot) -> Mapping[str, Versioned]:
        new, subscription = self._spared(type_url, target), self._subscriptions[type_url]
        if not subscription.wildcard:
            known = {**subscription.sent, **new}
            return {name: known[name] for name in subscription.names if name in known}
        dropped = subscription.sent.keys() - new.keys()
        if type_url == CDS and dropped and not (self._taken(LDS, target) and self._taken(RDS, target)):
            return {**subscription.sent, **new}  # old routes may still point at old clusters
        return new

    def _spared(self, type_url: str, target: Snapshot) -> Mapping[str, Versioned]:
        """The resources of the target but for those that the proxy keeps: a changed cluster would need endpoints."""
        new, kept = target.versioned[type_url], self.kept() if type_url in (CDS, EDS) else ()
        if not kept:
            return new
        sent = self._subscriptions[type_url].sent
        if type_url == EDS:
            return {name: entry for name, entry in new.items() if name not in kept}
        own = {name for name in kept if name in new and name in sent and sent[name].resource is None}
        return {**new, **{name: sent[name] for name in own}}

    def _taken(self, type_url: str, target: Snapshot) -> bool:
        """Whether the proxy has answered, well or badly, to this type, and nothing more is to be sent now."""
        subscription = self._subscriptions.get(type_url)
        if subscription is None:  # if there is any of it the proxy will subscribe by itself
            return not (self._led_to(type_url, target) if self._picks else target.resources[type_url])
        if subscription.outstanding or self._differs(subscription, self._wanted(type_url, target)):
            return False
        return self._warm(type_url, target)

    def _warm(self, type_url: str, target: Snapshot) -> bool:
        """Whether the proxy has asked for the endpoints of every cluster it has taken (and so for the routes)."""
        if self._picks:
            return self._led_to(type_url, target) <= self._subscriptions[type_url].names
        if type_url not in (EDS, RDS):
            return True
        pointing = self._subscriptions.get(CDS if type_url == EDS else LDS)
        if pointing is None or pointing.refused:
            return True
        return target.resources[type_url].keys() <= self._subscriptions[type_url].names

    def _led_to(self, type_url: str, target: Snapshot) -> frozenset[str]:
        """What a client that picks by name will ask for, by the listeners that it has picked."""
        refuses = any(subscription.refused for subscription in self._subscriptions.values())
        if type_url == LDS or refuses or not self._subscriptions[LDS].names & target.routed:
            return frozenset()
        return frozenset(target.resources[type_url])


class StateOfTheWorld(Stream):
    """Each response holds all of its type; a refusal is of all of it."""

    def _brought(self, request: Any) -> dict[str, int | None]:
        return dict.fromkeys(request.resource_names) if request.version_info else {}

    def _named(self, request: Any) -> Iterable[str]:
        names: Iterable[str] = request.resource_names
        return names

    def _subscribe(self, subscription: Subscription, request: Any) -> None:
        names = frozenset(request.resource_names)
        if not subscription.wildcard:  # a name that was dropped and comes again must be answered again
            subscription.stale = (subscription.stale | (names - subscription.names)) & names
        subscription.names = names

    def _refuse(self, subscription: Subscription, text: str) -> None:
        subscription.refused = {"": (subscription.nonce, text)}

    def _encode(self, type_url: str, subscription: Subscription, wanted: Mapping[str, Versioned]) -> DiscoveryResponse:
        subscription.refused = {}
        subscription.sent, subscription.in_flight = dict(wanted), tuple(wanted)
        return DiscoveryResponse(
            type_url=type_url,
            version_info=version(wanted),
            nonce=subscription.nonce,
            resources=[entry.resource for _, entry in sorted(wanted.items()) if entry.resource is not None],
        )
