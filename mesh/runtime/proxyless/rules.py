"""Who may call what, and whose tokens are good: read from the listener that the control plane gives this process.

It holds the filters that the inbound sidecar would carry out. Whatever is in them that is not understood here is
refused as a whole, so that no rule is passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.rbac.v3.rbac_pb2 import Permission, Policy, Principal
from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import JwtAuthentication
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from mesh.runtime.proxyless.tokens import Verifier


@dataclass(frozen=True)
class Paths:
    """The paths that a caller may use: these, and all that begin so."""

    exact: frozenset[str]
    prefixes: tuple[str, ...]

    def hold(self, path: str) -> bool:
        """Whether a path is one of them."""
        return path in self.exact or path.startswith(self.prefixes)


@dataclass(frozen=True)
class Rules:
    """What the inbound sidecar would hold calls against. Callers by SPIFFE id."""

    callers: dict[str, Paths]
    tokens: Verifier

    def allow(self, caller: str, path: str) -> bool:
        """Whether this caller may call this path."""
        paths = self.callers.get(caller)
        return paths is not None and paths.hold(path)


def read(listener: Listener) -> Rules:
    """Reads the rules of a listener.

    Raises:
        ValueError: something in them is not understood here.
    """
    http = HttpConnectionManager()
    if len(listener.filter_chains) != 1 or not listener.filter_chains[0].filters[0].typed_config.Unpack(http):
        raise ValueError("the listener has no HTTP filters")
    rbac, tokens, router = RBAC(), JwtAuthentication(), Router()
    expected = [rbac, tokens, router]
    if len(http.http_filters) != len(expected) or not all(
        each.typed_config.Unpack(message) for each, message in zip(http.http_filters, expected, strict=True)
    ):
        raise ValueError(f"the filters {', '.join(f.name for f in http.http_filters)} are not known")
    return Rules(_callers(rbac.rules), _verifier(tokens))


def _callers(rules: rbac_pb2.RBAC) -> dict[str, Paths]:
    if rules.action != rbac_pb2.RBAC.Action.ALLOW:
        raise ValueError("rules that do not allow are not known")
    exact: dict[str, set[str]] = defaultdict(set)
    prefixes: dict[str, set[str]] = defaultdict(set)
    for policy in rules.policies.values():
        _only(policy, "permissions", "principals")
        for caller in map(_caller, policy.principals):
            for kind, path in _paths(policy):
                (exact if kind == "exact" else prefixes)[caller].add(path)
    return {caller: Paths(frozenset(exact[caller]), tuple(sorted(prefixes[caller]))) for caller in {*exact, *prefixes}}


def _caller(principal: Principal) -> str:
    _only(principal, "authenticated")
    _only(principal.authenticated.principal_name, "exact")
    return str(principal.authenticated.principal_name.exact)


def _paths(policy: Policy) -> Iterator[tuple[str, str]]:
    for permission in policy.permissions:
        _only(permission, "or_rules")
        for rule in permission.or_rules.rules:
            yield _path(rule)


def _path(rule: Permission) -> tuple[str, str]:
    _only(rule, "url_path")
    kind = rule.url_path.path.WhichOneof("match_pattern")
    if kind not in ("exact", "prefix"):
        raise ValueError(f"a path by {kind} is not known")
    _only(rule.url_path.path, kind)
    return kind, getattr(rule.url_path.path, kind)


def _verifier(filter: JwtAuthentication) -> Verifier:
    if len(filter.providers) != 1:
        raise ValueError(f"{len(filter.providers)} issuers of tokens are not known, but one is")
    provider = next(iter(filter.providers.values()))
    keys = provider.local_jwks.inline_string
    return Verifier(provider.issuer, list(provider.audiences), keys, provider.clock_skew_seconds)


def _only(message: Any, *names: str) -> None:
    if strange := {field.name for field, _ in message.ListFields()} - set(names):
        raise ValueError(f"{message.DESCRIPTOR.full_name} with {', '.join(sorted(strange))} is not known")
