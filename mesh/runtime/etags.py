"""Etags (AIP-154): one changes with every change of its resource; a change that brings an old one is refused. Pure."""

from __future__ import annotations

import base64
import hashlib
from typing import Protocol

from mesh.runtime import errors

_BYTES = 12


class Resource(Protocol):
    """A message of a resource, or a row with the same fields."""

    @property
    def name(self) -> str:
        """Its resource name."""

    @property
    def etag(self) -> str:
        """Its etag as it is stored."""


def of(*version: object) -> str:
    """The etag of what `version` tells from all others: the id of a row and its revision.

    Not of the content: what is sensitive in it could be guessed from the etag, and what is changed back would be taken
    for unchanged.
    """
    text = "\0".join(map(str, version)).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(text).digest()[:_BYTES]).decode()


def check(stored: Resource, sent: str) -> None:
    """Lets pass a change of `stored` whose sender has seen it as it is, or sent no etag.

    Raises:
        ServiceError: ETAG_MISMATCH (ABORTED), somebody came between.
    """
    if sent and sent != stored.etag:
        raise errors.etag_mismatch(stored.name)
