"""Who may call what: callers by their certificate, users by the scopes of their token.

Everything that no policy allows is refused with PERMISSION_DENIED and logged with the caller's SPIFFE id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from envoy.config.rbac.v3.rbac_pb2 import RBAC, Permission, Policy, Principal, SourcedMetadata
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as filter_pb2
from envoy.type.matcher.v3 import metadata_pb2, value_pb2

from mesh.contract import Method
from mesh.xds import pb
from mesh.xds.plan import NodePlan
from mesh.xds.policies import jwt

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection."


def peers(node: NodePlan) -> Any:
    """Callers that declare this service may use all of it; the edge only what it exposes. Both may ask for health."""
    whole = [f"/{service}/" for service in node.grpc_services]
    exposed = [pb.path_exact(method.path) for method in node.methods if method.exposed]
    policies = {
        "edge": _policy([*exposed, pb.path_prefix(HEALTH)], [_identity(node.edge_id)]),
    }
    if node.callers:
        prefixes = [pb.path_prefix(p) for p in (*whole, HEALTH, REFLECTION)]
        policies["callers"] = _policy(prefixes, [_identity(caller) for caller in node.callers])
    return _filter("peers", policies)


def scopes(node: NodePlan) -> Any | None:
    """A method with scopes needs a token that carries all of them. None if no method here has any."""
    by_scopes: dict[tuple[str, ...], list[Method]] = defaultdict(list)
    for method in node.methods:
        by_scopes[method.scopes].append(method)
    by_scopes.pop((), None)
    if not by_scopes:
        return None
    scoped = [pb.path_exact(m.path) for methods in by_scopes.values() for m in methods]
    unscoped = Permission(not_rule=_any_path(scoped))
    policies = {"unscoped": Policy(permissions=[unscoped], principals=[Principal(any=True)])}
    for needed, methods in by_scopes.items():
        policies["+".join(needed)] = _policy([pb.path_exact(m.path) for m in methods], [carries(needed)])
    return _filter("scopes", policies)


def _policy(paths: Iterable[Any], principals: list[Principal]) -> Policy:
    return Policy(permissions=[_any_path(paths)], principals=principals)


def _any_path(paths: Iterable[Any]) -> Permission:
    return Permission(or_rules=Permission.Set(rules=[Permission(url_path=path) for path in paths]))


def _identity(spiffe_id: str) -> Principal:
    return Principal(authenticated=Principal.Authenticated(principal_name=pb.exact(spiffe_id)))


def carries(needed: tuple[str, ...]) -> Principal:
    """Matches a request whose verified token has all of these scopes."""
    return Principal(and_ids=Principal.Set(ids=[Principal(sourced_metadata=_has_scope(scope)) for scope in needed]))


def _has_scope(scope: str) -> SourcedMetadata:
    path = [metadata_pb2.MetadataMatcher.PathSegment(key=key) for key in (jwt.METADATA, jwt.SCOPE_CLAIM)]
    one = value_pb2.ListMatcher(one_of=value_pb2.ValueMatcher(string_match=pb.exact(scope)))
    return SourcedMetadata(
        metadata_matcher=metadata_pb2.MetadataMatcher(
            filter=jwt.FILTER, path=path, value=value_pb2.ValueMatcher(list_match=one)
        )
    )


def _filter(name: str, policies: dict[str, Policy]) -> Any:
    rules = RBAC(action=RBAC.Action.ALLOW, policies=policies)
    return pb.http_filter(f"rbac.{name}", filter_pb2.RBAC(rules=rules, rules_stat_prefix=f"{name}."))
