"""Short words for the protobuf fragments that every xDS file needs."""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import address_pb2, base_pb2, config_source_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.type.matcher.v3 import path_pb2, regex_pb2, string_pb2
from google.protobuf import any_pb2, duration_pb2, wrappers_pb2


def pack(message: Any) -> any_pb2.Any:
    """The message as an Any, serialized deterministically so that equal meaning gives equal bytes."""
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed


def seconds(value: float) -> duration_pb2.Duration:
    """A Duration of so many seconds (to the microsecond)."""
    duration = duration_pb2.Duration()
    duration.FromMicroseconds(round(value * 1_000_000))
    return duration


def uint32(value: int) -> wrappers_pb2.UInt32Value:
    """A number that may also be unset."""
    return wrappers_pb2.UInt32Value(value=value)


def true() -> wrappers_pb2.BoolValue:
    """Yes, where unset would mean no."""
    return wrappers_pb2.BoolValue(value=True)


def false() -> wrappers_pb2.BoolValue:
    """No, where unset would mean yes."""
    return wrappers_pb2.BoolValue(value=False)


def exact(value: str) -> string_pb2.StringMatcher:
    """Matches this text and no other."""
    return string_pb2.StringMatcher(exact=value)


def prefix(value: str) -> string_pb2.StringMatcher:
    """Matches every text that starts so."""
    return string_pb2.StringMatcher(prefix=value)


def regex(value: str) -> string_pb2.StringMatcher:
    """Matches every text that this RE2 expression matches as a whole."""
    return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=value))


def path_exact(value: str) -> path_pb2.PathMatcher:
    """Matches one path, whatever its query."""
    return path_pb2.PathMatcher(path=exact(value))


def path_prefix(value: str) -> path_pb2.PathMatcher:
    """Matches every path that starts so."""
    return path_pb2.PathMatcher(path=prefix(value))


def pipe(path: str) -> address_pb2.Address:
    """A Unix socket that only its owner may open."""
    return address_pb2.Address(pipe=address_pb2.Pipe(path=path, mode=0o600))


def tcp(address: str, port: int) -> address_pb2.Address:
    """An IP address and port."""
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=address, port_value=port))


def ads() -> config_source_pb2.ConfigSource:
    """This resource comes over the one ADS stream."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.ApiVersion.V3
    )


def header(key: str, value: str) -> base_pb2.HeaderValueOption:
    """Sets a header, whatever it held before."""
    overwrite = base_pb2.HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    return base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=key, value=value), append_action=overwrite)


def header_is(name: str, matcher: string_pb2.StringMatcher) -> route_components_pb2.HeaderMatcher:
    """Matches requests whose header matches."""
    return route_components_pb2.HeaderMatcher(name=name, string_match=matcher)


def http_filter(name: str, config: Any) -> hcm_pb2.HttpFilter:
    """One link of the HTTP filter chain."""
    return hcm_pb2.HttpFilter(name=name, typed_config=pack(config))


def sleeping(name: str, config: Any) -> hcm_pb2.HttpFilter:
    """One that no call meets but on routes that wake it: so an edit changes routes, and breaks no connection."""
    return hcm_pb2.HttpFilter(name=name, typed_config=pack(config), disabled=True)


def awake() -> any_pb2.Any:
    """What a route says to wake it."""
    return pack(route_components_pb2.FilterConfig(config=any_pb2.Any()))
