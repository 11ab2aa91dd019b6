"""On whose behalf: the end user's token, verified by every sidecar, told to the application in headers."""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3.route_components_pb2 import RouteMatch
from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import (
    JwtAuthentication,
    JwtCacheConfig,
    JwtClaimToHeader,
    JwtHeader,
    JwtProvider,
    JwtRequirement,
    JwtRequirementOrList,
    RequirementRule,
)
from google.protobuf import empty_pb2

from mesh.contract import Method
from mesh.identity.issuer import AUDIENCE, ISSUER
from mesh.xds import pb
from mesh.xds.plan import NodePlan

FILTER = "envoy.filters.http.jwt_authn"
PROVIDER = "nourish"
USER, SCOPES = "x-nourish-user", "x-nourish-scopes"
CLAIM_HEADERS = {USER: "sub", SCOPES: "scope"}


def verify(node: NodePlan) -> Any:
    """Required where the contract says ACCESS_USER; elsewhere a token may be missing, but it may not be bad."""
    config = JwtAuthentication(
        providers={PROVIDER: provider(node.materials.jwks)},
        rules=[
            RequirementRule(match=RouteMatch(path=method.path), requires=requirement(method)) for method in node.methods
        ],
        strip_failure_response=True,
    )
    return pb.http_filter(FILTER, config)


def provider(jwks: str, *, routed_by: bool = False) -> JwtProvider:
    """The one issuer of end-user tokens. `jwks`: its public keys, a JSON Web Key Set (RFC 7517).

    `routed_by`: the route is found again once the user is known.
    """
    return JwtProvider(
        issuer=ISSUER,
        audiences=[AUDIENCE],
        local_jwks=base_pb2.DataSource(inline_string=jwks),
        require_expiration=True,
        clock_skew_seconds=5,
        forward=True,  # a service passes the token on when it acts for the user
        from_headers=[JwtHeader(name="authorization", value_prefix="Bearer ")],
        claim_to_headers=[JwtClaimToHeader(header_name=h, claim_name=c) for h, c in CLAIM_HEADERS.items()],
        jwt_cache_config=JwtCacheConfig(jwt_cache_size=1000),
        clear_route_cache=routed_by,
    )


def requirement(method: Method) -> JwtRequirement:
    """What a method asks of the token."""
    required = JwtRequirement(provider_name=PROVIDER)
    if method.access == "user":
        return required
    optional = JwtRequirement(allow_missing=empty_pb2.Empty())
    return JwtRequirement(requires_any=JwtRequirementOrList(requirements=[required, optional]))
