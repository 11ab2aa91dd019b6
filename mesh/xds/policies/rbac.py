"""Who may call what: callers by their certificate, users by the scopes of their token.

Everything that no policy allows is refused with PERMISSION_DENIED and logged with the caller's SPIFFE id.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from envoy.config.rbac.v3.rbac_pb2 import RBAC, Permission, Policy, Principal
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as filter_pb2

from mesh.contract import Method
from mesh.xds import pb
from mesh.xds.plan import NodePlan
from mesh.xds.policies import jwt

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection."
SCOPES = "rbac.scopes"


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
    rules = RBAC(action=RBAC.Action.ALLOW, policies=policies)
    return pb.http_filter("rbac.peers", filter_pb2.RBAC(rules=rules, rules_stat_prefix="peers."))


def scopes(_node: NodePlan) -> Any:
    """No rules of its own: a route whose method has scopes brings them."""
    return pb.http_filter(SCOPES, filter_pb2.RBAC())


def settings(method: Method) -> dict[str, Any]:
    """What a user's token must carry for a method; by the filter's name, empty if nothing."""
    if not method.scopes:
        return {}
    carries_all = Policy(permissions=[Permission(any=True)], principals=[_carries(method.scopes)])
    rules = RBAC(action=RBAC.Action.ALLOW, policies={"+".join(method.scopes): carries_all})
    return {SCOPES: pb.pack(filter_pb2.RBACPerRoute(rbac=filter_pb2.RBAC(rules=rules)))}


def _policy(paths: Iterable[Any], principals: list[Principal]) -> Policy:
    return Policy(permissions=[_any_path(paths)], principals=principals)


def _any_path(paths: Iterable[Any]) -> Permission:
    return Permission(or_rules=Permission.Set(rules=[Permission(url_path=path) for path in paths]))


def _identity(spiffe_id: str) -> Principal:
    return Principal(authenticated=Principal.Authenticated(principal_name=pb.exact(spiffe_id)))


def among_words(word: str) -> str:
    """An RE2 expression for words parted by spaces, as RFC 8693 (4.2) has scopes, with this one among them."""
    return f"(?:.* )?{re.escape(word)}(?: .*)?"


def _carries(needed: tuple[str, ...]) -> Principal:
    """A request whose verified token has all of these scopes: the header is the token's own, see `headers`."""
    found = [pb.header_is(jwt.SCOPES, pb.regex(among_words(scope))) for scope in needed]
    return Principal(and_ids=Principal.Set(ids=[Principal(header=matcher) for matcher in found]))
