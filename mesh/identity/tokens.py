"""Development tokens: the JWTs that Envoy's jwt_authn checks until there is an identity service.

The private key stays with whoever may read the mesh's home; Envoy is given the public one. Nothing accepts a request
without a token because of this module: there is no bypass.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet

from mesh.identity import files
from mesh.identity.issuer import AUDIENCE, ISSUER

ALGORITHM = "ES256"
DEFAULT_LIFETIME = timedelta(hours=1)
SIGNING_KEY, PUBLIC_KEYS = "token-key.json", "jwks.json"


class TokenError(Exception):
    """The token is not one of ours, or not valid now."""


@dataclass(frozen=True)
class Claims:
    """What a valid token says. Times are seconds since the epoch."""

    user: str
    scopes: tuple[str, ...]
    issued: int
    expires: int


def mint(folder: Path, user: str, scopes: Iterable[str] = (), lifetime: timedelta = DEFAULT_LIFETIME) -> str:
    """Returns a signed token for `user`. A negative `lifetime` gives one that has expired already, for tests.

    Raises:
        ValueError: `user` is empty, or a scope is empty or has white space.
        OSError: the key cannot be read or written.
    """
    granted = tuple(dict.fromkeys(scopes))
    if not user or not user.isprintable():
        raise ValueError("the user's name is empty or has control characters")
    for scope in granted:
        if not scope or scope.split() != [scope]:
            raise ValueError(f"{scope!r} is no scope: no white space, not empty")
    now = int(time.time())
    expires = now + int(lifetime.total_seconds())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user,
        "scope": " ".join(granted),
        "iat": min(now, expires),
        "exp": expires,
        "jti": secrets.token_urlsafe(16),
    }
    key = signing_key(folder)
    return jwt.encode({"alg": ALGORITHM, "kid": key.kid, "typ": "JWT"}, claims, key)


def verify(folder: Path, token: str) -> Claims:
    """Checks a token against the mesh's public keys, as Envoy does.

    Raises:
        TokenError: it is malformed, expired, or not signed by this mesh.
    """
    required = {name: {"essential": True} for name in ("sub", "exp", "iat")}
    issuer = {"essential": True, "value": ISSUER}
    audience = {"essential": True, "value": AUDIENCE}
    registry = jwt.JWTClaimsRegistry(iss=issuer, aud=audience, **required)  # type: ignore[arg-type]
    try:
        claims = jwt.decode(token, KeySet.import_key_set(json.loads(public_jwks(folder))), [ALGORITHM]).claims
        registry.validate(claims)
    except (JoseError, ValueError) as error:
        raise TokenError(str(error)) from None
    return Claims(claims["sub"], tuple(claims.get("scope", "").split()), claims["iat"], claims["exp"])


def public_jwks(folder: Path) -> str:
    """The JWKS that verifies this mesh's tokens, as JSON; made with its key if there is none yet."""
    signing_key(folder)
    return (folder / PUBLIC_KEYS).read_text()


def signing_key(folder: Path) -> ECKey:
    """The private key in `folder`, made if there is none yet, with its public half beside it.

    Raises:
        OSError: the folder cannot be read or written.
        ValueError: what lies there is no key.
    """
    stored = files.create_once(folder / SIGNING_KEY, lambda: _dump(_new_key(), private=True))
    try:
        key = ECKey.import_key(json.loads(stored))
    except (JoseError, ValueError, TypeError) as error:
        raise ValueError(f"{folder / SIGNING_KEY} is no key ({error}): remove it, and a new one is made") from None
    files.replace(folder / PUBLIC_KEYS, b'{"keys": [' + _dump(key, private=False) + b"]}\n")
    return key


def _new_key() -> ECKey:
    return ECKey.generate_key("P-256", {"use": "sig", "alg": ALGORITHM}, auto_kid=True)


def _dump(key: ECKey, *, private: bool) -> bytes:
    return json.dumps(key.as_dict(private=private)).encode()
