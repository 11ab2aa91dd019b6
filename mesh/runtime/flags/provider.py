"""The OpenFeature provider: flags of the values, for the verified user of the call that is served."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict
from nourish.mesh.v1.settings_pb2 import WatchSettingsResponse
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, FlagResolutionDetails, FlagValueType, Reason
from openfeature.hook import Hook, HookContext, HookHints
from openfeature.provider import AbstractProvider, Metadata

from mesh.runtime import auth
from mesh.runtime.flags.rules import Flag

T = TypeVar("T")

NAME = "nourish"
Exposed = Callable[[str, str, str], None]

_log = logging.getLogger(__name__)


class Provider(AbstractProvider):
    """Gives what the values say now. `exposed` is told the flag, variant and user of each that users share out."""

    def __init__(self, exposed: Exposed) -> None:
        super().__init__()
        self._hook = _Exposure(exposed)
        self._said: Mapping[str, Any] = {}
        self._flags: dict[str, Flag] = {}
        self._refused: set[str] = set()  # which had a wrong type, and were logged

    def get_metadata(self) -> Metadata:
        """As OpenFeature asks."""
        return Metadata(name=NAME)

    def get_provider_hooks(self) -> list[Hook]:
        """As OpenFeature asks."""
        return [self._hook]

    def hear(self, answer: WatchSettingsResponse) -> None:
        """What the control plane says."""
        self.take({name: MessageToDict(flag) for name, flag in answer.flags.items()})

    def take(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        """All flags of the values by name, from now on; returns those of before."""
        before, self._said = self._said, said
        changed = sorted(name for name in {*before, *said} if before.get(name) != said.get(name))
        if changed:
            self._flags = {name: Flag(name, flag) for name, flag in said.items()}
            self._refused.clear()
            _log.info("flags changed: %s", ", ".join(changed))
            self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=changed))
        return before

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """As OpenFeature asks."""
        return self._resolved(flag_key, default_value, evaluation_context, lambda value: isinstance(value, bool))

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """As OpenFeature asks."""
        return self._resolved(flag_key, default_value, evaluation_context, lambda value: isinstance(value, str))

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """As OpenFeature asks: a whole number."""
        return self._resolved(flag_key, default_value, evaluation_context, _is_whole, int)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """As OpenFeature asks."""
        return self._resolved(flag_key, default_value, evaluation_context, _is_number, float)

    def resolve_object_details(
        self, flag_key: str, default_value: Any, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[Any]:
        """As OpenFeature asks."""
        return self._resolved(flag_key, default_value, evaluation_context, lambda value: isinstance(value, dict))

    def _resolved(
        self,
        name: str,
        default: T,
        context: EvaluationContext | None,
        fits: Callable[[Any], bool],
        convert: Callable[[Any], T] = lambda value: value,
    ) -> FlagResolutionDetails[T]:
        flag = self._flags.get(name)
        if flag is None:
            return _error(default, ErrorCode.FLAG_NOT_FOUND, f"the values have no flag {name!r}")
        principal = auth.principal()
        given = flag.give(_user(context), principal.scopes, context.attributes if context else {})
        if not fits(given.value):
            message = f"the flag {name!r} is {given.value!r}, and not of the type of {default!r}"
            if name not in self._refused:
                self._refused.add(name)
                _log.error("%s, which holds", message)
            return _error(default, ErrorCode.TYPE_MISMATCH, message)
        return FlagResolutionDetails(convert(given.value), reason=Reason(given.reason), variant=given.variant)


class _Exposure(Hook):
    """Tells of each user who was given a variant by the shares: the default is one, too."""

    def __init__(self, exposed: Exposed) -> None:
        self._exposed = exposed

    def after(self, hook_context: HookContext, details: FlagEvaluationDetails[FlagValueType], hints: HookHints) -> None:
        """As OpenFeature calls it, after a flag was resolved."""
        if details.reason == Reason.SPLIT and details.variant:
            self._exposed(hook_context.flag_key, details.variant, _user(hook_context.evaluation_context))


def _user(context: EvaluationContext | None) -> str:
    """Whom a flag is for: whom the code names, else the verified user of the call; "" for nobody."""
    return (context and context.targeting_key) or auth.principal().user or ""


def _error(default: T, code: ErrorCode, message: str) -> FlagResolutionDetails[T]:
    return FlagResolutionDetails(default, error_code=code, error_message=message, reason=Reason.ERROR)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer()
