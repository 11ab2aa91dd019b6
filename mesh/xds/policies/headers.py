"""Headers that only the mesh may set are removed from every request before anything reads them."""

from __future__ import annotations

from envoy.config.common.mutation_rules.v3.mutation_rules_pb2 import HeaderMutation
from envoy.config.core.v3 import extension_pb2
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2

from mesh.xds import pb
from mesh.xds.policies import canary

OURS = "x-nourish-"
ENGINE = "x-envoy-"


def strip(
    *more_prefixes: str, names: tuple[str, ...] = (), kept: tuple[str, ...] = ()
) -> extension_pb2.TypedExtensionConfig:
    """Removes `x-envoy-*`, `x-nourish-*` (but for canary and `kept`), headers of these prefixes, and these names."""
    words = [name.removeprefix(OURS) for name in (canary.HEADER, *kept)]
    # One expression for both: every matcher is a walk over all headers.
    matchers = [pb.regex(f"{ENGINE}.*|{OURS}{all_but(*words)}"), *map(pb.prefix, more_prefixes)]
    mutations = [HeaderMutation(remove_on_match=HeaderMutation.RemoveOnMatch(key_matcher=m)) for m in matchers]
    mutations += [HeaderMutation(remove=name) for name in names]
    config = header_mutation_pb2.HeaderMutation(mutations=mutations)
    return extension_pb2.TypedExtensionConfig(name="strip", typed_config=pb.pack(config))


def all_but(*words: str) -> str:
    """An RE2 expression (which has no look-ahead) for every text but these words, the empty one too."""
    letters = sorted({word[0] for word in words if word})
    if not letters:
        return ".+" if words else ".*"
    branches = [letter + all_but(*(word[1:] for word in words if word.startswith(letter))) for letter in letters]
    pattern = f"(?:[^{''.join(letters)}].*|{'|'.join(branches)})"
    return pattern if "" in words else f"{pattern}?"
