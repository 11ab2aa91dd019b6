"""What the contract says of a field that matters to a replay alone."""

from __future__ import annotations

from nourish.mesh.v1 import policy_pb2

from mesh.runtime.sensitive import Field


def is_volatile(field: Field) -> bool:
    """Whether it differs between two correct answers."""
    return bool(field.GetOptions().Extensions[policy_pb2.field].volatile)
