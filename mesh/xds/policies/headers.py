"""Headers that only the mesh may set are removed from every request before anything reads them."""

from __future__ import annotations

from envoy.config.common.mutation_rules.v3.mutation_rules_pb2 import HeaderMutation
from envoy.config.core.v3 import extension_pb2
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2

from mesh.xds import pb
from mesh.xds.policies import canary

OURS = "x-nourish-"
ENGINE = "x-envoy-"


def strip(*more_prefixes: str, names: tuple[str, ...] = ()) -> extension_pb2.TypedExtensionConfig:
    """Removes `x-envoy-*`, `x-nourish-*` (but the canary header), headers of these prefixes, and these names."""
    kept = canary.HEADER.removeprefix(OURS)
    matchers = [pb.prefix(p) for p in (ENGINE, *more_prefixes)]
    matchers.append(string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=OURS + all_but(kept))))
    mutations = [HeaderMutation(remove_on_match=HeaderMutation.RemoveOnMatch(key_matcher=m)) for m in matchers]
    mutations += [HeaderMutation(remove=name) for name in names]
    config = header_mutation_pb2.HeaderMutation(mutations=mutations)
    return extension_pb2.TypedExtensionConfig(name="strip", typed_config=pb.pack(config))


def all_but(word: str) -> str:
    """An RE2 expression (which has no look-ahead) for every text but `word`, the empty one too."""
    pattern = ".+"
    for letter in reversed(word):
        pattern = f"(?:[^{letter}].*|{letter}{pattern})?"
    return pattern
