"""The incremental variant of an ADS stream: only what changed is sent, and a refusal is of single resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse, Resource

from mesh.xds.snapshot import Versioned, hosts_in, version
from mesh.xds.stream import Stream, Subscription


class Incremental(Stream):
    """Envoy names the versions it has when it reconnects, and is sent nothing of what it has already.

    A response that is refused is sent again, a resource at a time, so that one bad resource holds back no good one.
    """

    def _brought(self, request: Any) -> dict[str, int | None]:
        return {name: hosts_in(held) for name, held in request.initial_resource_versions.items()}

    def _named(self, request: Any) -> Iterable[str]:
        names: Iterable[str] = request.resource_names_subscribe
        return names

    def _subscribe(self, subscription: Subscription, request: Any) -> None:
        added = frozenset(request.resource_names_subscribe) - {"*"}
        if subscription.new and request.initial_resource_versions:
            held = request.initial_resource_versions
            subscription.sent = {name: Versioned(held[name], None) for name in held}
            subscription.new = False
        else:  # a name that is asked for (again) must be answered, even if it was sent before
            subscription.stale |= added
        removed = frozenset(request.resource_names_unsubscribe)
        subscription.names = (subscription.names - removed) | added
        if not subscription.wildcard:
            for name in removed - added:
                subscription.sent.pop(name, None)
                subscription.refused.pop(name, None)
            subscription.stale &= subscription.names

    def _refuse(self, subscription: Subscription, text: str) -> None:
        together = subscription.in_flight
        for name in together or ("",):
            subscription.refused[name] = (subscription.nonce, text)
        if len(together) > 1:
            subscription.alone.update(together)
            subscription.stale.update(together)

    def _encode(
        self, type_url: str, subscription: Subscription, wanted: Mapping[str, Versioned]
    ) -> DeltaDiscoveryResponse:
        names = sorted(subscription.changed(wanted))
        if alone := [name for name in names if name in subscription.alone]:
            names = alone[:1]
            subscription.alone.discard(names[0])
        removed = sorted(subscription.sent.keys() - wanted.keys()) if subscription.wildcard else []
        for name in (*names, *removed, ""):
            subscription.refused.pop(name, None)
        subscription.in_flight = tuple(names)
        kept = {name: entry for name, entry in subscription.sent.items() if name not in removed}
        subscription.sent = {**kept, **{name: wanted[name] for name in names}}
        return DeltaDiscoveryResponse(
            type_url=type_url,
            system_version_info=version(subscription.sent),
            nonce=subscription.nonce,
            resources=[Resource(name=n, version=wanted[n].version, resource=wanted[n].resource) for n in names],
            removed_resources=removed,
        )
