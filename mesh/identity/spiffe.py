"""SPIFFE ids as this mesh writes them: `spiffe://<trust domain>/ns/<namespace>/sa/<service>`."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A trust domain is lower-case letters, digits, dots, dashes and underscores; a path segment may also be upper case
# (SPIFFE-ID standard, sections 2.1 and 2.2). Segments of dots alone are not allowed.
_ID = re.compile(
    r"spiffe://(?P<trust_domain>[a-z0-9._-]{1,255})"
    r"/ns/(?P<namespace>(?!\.+/)[A-Za-z0-9._-]+)/sa/(?P<service>(?!\.+$)[A-Za-z0-9._-]+)"
)
_LONGEST = 2048  # bytes; SPIFFE-ID standard, section 2.3


@dataclass(frozen=True)
class SpiffeId:
    """The identity of a service, the same for all of its instances."""

    trust_domain: str
    namespace: str
    service: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Reads an id.

        Raises:
            ValueError: `text` is not of this mesh's form.
        """
        match = _ID.fullmatch(text)
        if match is None or len(text) > _LONGEST:
            raise ValueError(f"{text!r} is not spiffe://<trust domain>/ns/<namespace>/sa/<service>")
        return cls(**match.groupdict())

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service}"
