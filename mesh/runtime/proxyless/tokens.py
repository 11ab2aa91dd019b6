"""The end user's token, verified as every sidecar verifies it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from cachetools import LRUCache
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

BEARER = "Bearer "
ALGORITHMS = ["ES256", "RS256", "Ed25519"]  # of public keys alone
REMEMBERED = 1000


class TokenError(Exception):
    """A token that is not one of ours, or not valid now."""


@dataclass(frozen=True)
class Claims:
    """What a valid token says."""

    user: str
    scopes: str  # as in the token, divided by spaces
    expires: float


@dataclass
class Verifier:
    """One issuer's tokens. `jwks`: its public keys, a JSON Web Key Set."""

    issuer: str
    audiences: list[str]
    jwks: str
    skew: int  # seconds
    _keys: KeySet = field(init=False)
    _known: LRUCache[str, Claims] = field(init=False)

    def __post_init__(self) -> None:
        """Reads the keys.

        Raises:
            ValueError: they are none.
        """
        try:
            self._keys = KeySet.import_key_set(json.loads(self.jwks))
        except JoseError as error:
            raise ValueError(f"the keys of {self.issuer} cannot be read: {error}") from None
        self._known = LRUCache(REMEMBERED)

    def verify(self, authorization: str) -> Claims | None:
        """Reads an `authorization` header; None if it holds no token.

        Raises:
            TokenError: the token is bad.
        """
        if not authorization.startswith(BEARER):
            return None
        token = authorization.removeprefix(BEARER)
        claims = self._known.get(token)
        if claims is None:
            claims = self._known[token] = self._decode(token)
        if claims.expires + self.skew < time.time():
            raise TokenError("it has expired")
        return claims

    def _decode(self, token: str) -> Claims:
        checks: Any = {
            "iss": {"essential": True, "value": self.issuer},
            "aud": {"essential": True, "values": self.audiences},
            "exp": {"essential": True},
        }
        try:
            claims = jwt.decode(token, self._keys, ALGORITHMS).claims
            jwt.JWTClaimsRegistry(leeway=self.skew, **checks).validate(claims)
        except (JoseError, ValueError) as error:
            raise TokenError(str(error)) from None
        return Claims(str(claims.get("sub", "")), str(claims.get("scope", "")), float(claims["exp"]))
