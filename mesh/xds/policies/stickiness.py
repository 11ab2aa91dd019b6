"""The same user, the same subset: where the values say so, the canary's weight is a share of users.

A user's place among the hundred is a hash of the name in the *verified* token, the same at every proxy. The canary has
the places from the top: a growing weight moves users to it and none away. A call without a user goes by chance.
"""

from __future__ import annotations

from typing import Any

from envoy.config.route.v3.route_components_pb2 import RouteAction, RouteMatch
from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import (
    JwtAuthentication,
    JwtRequirement,
    JwtRequirementOrList,
    RequirementRule,
)
from google.protobuf import empty_pb2

from mesh.xds import pb
from mesh.xds.plan import Callee, NodePlan
from mesh.xds.policies import jwt


def users(node: NodePlan) -> Any:
    """Who the user is, of a call that the application sends on: from its token, since a header anybody can write.

    It sleeps until a route wakes it. A token that is not good is the callee's to refuse.
    """
    any_token = JwtRequirementOrList(
        requirements=[
            JwtRequirement(provider_name=jwt.PROVIDER),
            JwtRequirement(allow_missing_or_failed=empty_pb2.Empty()),
        ]
    )
    config = JwtAuthentication(
        providers={jwt.PROVIDER: jwt.provider(node.materials.jwks, routed_by=True)},
        rules=[RequirementRule(match=RouteMatch(prefix="/"), requires=JwtRequirement(requires_any=any_token))],
    )
    return pb.sleeping(jwt.FILTER, config)


def settings(callee: Callee) -> dict[str, Any]:
    """Wakes the filter on the routes of a callee that asks for it; by the filter's name."""
    return {jwt.FILTER: pb.awake()} if _asked(callee) else {}


def divide(callee: Callee, action: RouteAction) -> None:
    """Makes a route's choice between the subsets one by user."""
    if _asked(callee):
        action.weighted_clusters.use_hash_policy.value = True
        # In place of the ring's key, which would be mixed in; the cluster knows that one itself.
        del action.hash_policy[:]
        action.hash_policy.add().header.header_name = jwt.USER


def _asked(callee: Callee) -> bool:
    return callee.sticky == "user" and len(callee.targets) > 1
