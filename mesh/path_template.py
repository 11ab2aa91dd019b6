"""URL path templates of google.api.http: parsed, as a regex, and compared.

Grammar (google/api/http.proto): `Template = "/" Segments [ ":" LITERAL ]`, `Segments = Segment { "/" Segment }`,
`Segment = "*" | "**" | LITERAL | "{" FieldPath [ "=" Segments ] "}"`. A `*` takes one segment, a last `**` takes all
that is left, even nothing. Neither takes a colon: what follows one is the verb of a custom method, which tells
`foods:search` from `foods/*` and `foods/x:copy` from `foods/x`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LITERAL = re.compile(r"[A-Za-z0-9._~-]+")
_FIELD_PATH = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")
_VARIABLE = re.compile(r"\{([^{}=]*)(?:=([^{}]*))?\}")
_ANY = "[^/:]+"


@dataclass(frozen=True)
class PathTemplate:
    """A path: `segments` are literals, "*" and, as the last, "**"; `variables` the field paths it fills."""

    segments: tuple[str, ...]
    verb: str = ""
    variables: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> PathTemplate:
        """Reads a template.

        Raises:
            ValueError: what the grammar forbids; the message completes "REST path '...': ".
        """
        if not text.startswith("/"):
            raise ValueError("does not begin with '/'")
        variables = tuple(match[1] for match in _VARIABLE.finditer(text))
        for name in variables:
            if not _FIELD_PATH.fullmatch(name):
                raise ValueError(f"{name!r} is not a field path")
        if len(set(variables)) < len(variables):
            raise ValueError("names a field twice")
        flat = _VARIABLE.sub(lambda match: "*" if match[2] is None else match[2], text)
        flat, _, verb = flat.partition(":")
        segments = tuple(flat[1:].split("/"))
        for literal in (*(s for s in segments if s not in ("*", "**")), *([verb] if verb else [])):
            if not _LITERAL.fullmatch(literal):
                raise ValueError(f"{literal!r} is neither a literal nor a wildcard")
        if "**" in segments[:-1]:
            raise ValueError("'**' may only come last")
        return cls(segments, verb, variables)

    @property
    def regex(self) -> str:
        """A full-match RE2 regex of the paths (without a query) that the template accepts."""
        kinds = {"*": f"/{_ANY}", "**": f"(?:/{_ANY})*"}
        path = "".join(kinds.get(s, "/" + re.escape(s)) for s in self.segments)
        return path + (f":{re.escape(self.verb)}" if self.verb else "")

    def overlaps(self, other: PathTemplate) -> bool:
        """Whether some path is accepted by both."""
        return self.verb == other.verb and _meet(self.segments, other.segments)


def _meet(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    for position in range(max(len(ours), len(theirs))):
        left, right = ours[position : position + 1], theirs[position : position + 1]
        if left == ("**",) or right == ("**",):
            return True
        if not left or not right:
            return False
        if left != right and ("*",) not in (left, right):
            return False
    return True
