"""Feature flags of the values, each for the verified user of the call: `services.<name>.flags`.

    if await flags.on("search.newOrder"): ...
    size = await flags.value("list.size", 20)

A user keeps a variant, in every process and after each restart. Where the values do not have a flag, or have another
type for it, or there is no mesh, the default holds. It is OpenFeature: `openfeature.api.get_client()` says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from openfeature import api
from openfeature.evaluation_context import EvaluationContext

from mesh.runtime import settings
from mesh.runtime.flags.exposures import Exposures
from mesh.runtime.flags.provider import Provider

__all__ = ["on", "settle", "value"]

T = TypeVar("T", bool, str, int, float, dict[str, Any])

_exposures = Exposures()
provider = Provider(_exposures.note)
api.set_provider_and_wait(provider)
settings.process.hear(provider.hear)
_client = api.get_client()
_ASK: dict[type, Callable[..., Any]] = {
    bool: _client.get_boolean_value_async,
    str: _client.get_string_value_async,
    int: _client.get_integer_value_async,
    float: _client.get_float_value_async,
    dict: _client.get_object_value_async,
}
settle = _exposures.settle


async def on(name: str, **attributes: str | float | bool) -> bool:
    """Whether a flag of true and false is true for the user of this call.

    Args:
        name: as the values have it.
        attributes: what rules may go by, `country="CH"`.
    """
    return await value(name, False, **attributes)


async def value(name: str, default: T, **attributes: str | float | bool) -> T:
    """The value of the variant that the user of this call is given; `default`, if there is none of its type."""
    context = EvaluationContext(attributes=attributes) if attributes else None
    return cast(T, await _ASK[type(default)](name, default, context))
