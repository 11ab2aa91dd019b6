"""No sensitive value survives the mask, and a comparison reports what differs and nothing else."""

from __future__ import annotations

import struct

import pytest
from google.protobuf import any_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st
from nourish.food.v1 import food_pb2
from nourish.profile.v1 import profile_pb2

from mesh.contract import Contract
from mesh.replay.diff import HIDDEN, Difference, differences
from mesh.replay.frames import FrameError, messages
from mesh.runtime.sensitive import ANY, is_map, is_sensitive, mask

CONTRACT = Contract.read()
POOL = descriptor_pool.DescriptorPool()
for _file in CONTRACT.descriptors.file:
    POOL.Add(_file)
TYPES = sorted({t for ms in CONTRACT.methods.values() for m in ms for t in (m.input_type, m.output_type)})


@st.composite
def encoded(draw, kind, depth=0):
    """Wire bytes of a random message: random fields of the type, each with a random value."""
    fields = [f for f in kind.fields if not is_map(f) and (f.message_type is None or depth < 4)]
    message = message_factory.GetMessageClass(kind)()
    for field in draw(st.lists(st.sampled_from(fields), unique_by=lambda f: f.number)) if fields else []:
        if field.message_type:
            part = draw(encoded(field.message_type, depth + 1))
            target = getattr(message, field.name)
            (target.add() if field.is_repeated else target).MergeFromString(part)
            if not field.is_repeated:
                target.SetInParent()
            continue
        value = draw(_scalar(field))
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    return message.SerializeToString()


def _scalar(field):
    by_type = {
        field.CPPTYPE_STRING: st.binary(max_size=8) if field.type == field.TYPE_BYTES else st.text("abc", max_size=8),
        field.CPPTYPE_BOOL: st.booleans(),
        field.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
        field.CPPTYPE_FLOAT: st.floats(width=32, allow_nan=False),
        field.CPPTYPE_ENUM: st.sampled_from([v.number for v in field.enum_type.values] if field.enum_type else [0]),
    }
    return by_type.get(field.cpp_type, st.integers(0, 2**31 - 1))


def sensitive_fields(message):
    if message.DESCRIPTOR.full_name == ANY and message.value:  # of a type that is made up
        yield "value"
        return
    for field, value in message.ListFields():
        if is_sensitive(field):
            yield field.full_name
        elif field.message_type and not is_map(field):
            for part in value if field.is_repeated else [value]:
                yield from sensitive_fields(part)


@given(st.data())
def test_no_sensitive_or_unknown_field_of_any_message_of_the_contracts_passes_the_mask(data):
    kind = POOL.FindMessageTypeByName(data.draw(st.sampled_from(TYPES)))
    unknown = b"\xfa\xff\x01\x03abc"  # a field that no message has
    message = message_factory.GetMessageClass(kind).FromString(data.draw(encoded(kind)) + unknown)
    held = bool(list(sensitive_fields(message)))
    assert bool(mask(message)) == held
    assert list(sensitive_fields(message)) == []
    assert b"\xfa\xff\x01" not in message.SerializeToString()


def test_what_an_any_holds_is_masked_and_what_nobody_knows_is_dropped():
    profile = profile_pb2.Profile(name="profiles/1", display_name="Ada")
    held = any_pb2.Any()
    held.Pack(profile)
    assert mask(held) == ["display_name"]
    assert b"Ada" not in held.value
    strange = any_pb2.Any(type_url="x/not.in.the.Contract", value=b"secret")
    mask(strange)
    assert strange.value == b""


def test_a_resource_more_is_one_difference_and_volatile_fields_are_none():
    one, two = (food_pb2.Food(name=f"foods/{n}", etag=n) for n in "ab")
    left = food_pb2.ListFoodsResponse(foods=[two], next_page_token="x")
    right = food_pb2.ListFoodsResponse(foods=[one, two], next_page_token="y")
    right.foods[1].etag = "changed"
    assert differences(left, right) == [Difference("foods[foods/a]", None, "(Food)")]


def test_a_search_result_is_found_by_its_food_and_a_change_of_order_is_said():
    results = [food_pb2.SearchResult(food=food_pb2.Food(name=f"foods/{n}"), score=1.0) for n in "ab"]
    left = food_pb2.SearchFoodsResponse(results=results)
    right = food_pb2.SearchFoodsResponse(results=results[::-1])
    assert [d.path for d in differences(left, right)] == ["results(order)"]


def test_floats_are_compared_by_relative_tolerance():
    left, right = food_pb2.SearchResult(score=1.0), food_pb2.SearchResult(score=1.001)
    assert differences(left, right) == [Difference("score", 1.0, 1.001)]
    assert differences(left, right, tolerance=0.01) == []


def test_sensitive_values_differ_without_being_shown():
    left, right = (profile_pb2.Profile(display_name=n) for n in ("Ada", "Bob"))
    assert differences(left, right) == [Difference("display_name", HIDDEN, HIDDEN)]


def test_an_any_is_compared_by_what_it_holds_and_its_raw_bytes_are_never_shown():
    left, right = any_pb2.Any(), any_pb2.Any()
    left.Pack(profile_pb2.Profile(name="profiles/1", display_name="Ada", etag="1"))
    right.Pack(profile_pb2.Profile(name="profiles/1", display_name="Bob", etag="2"))
    assert differences(left, right) == [Difference("display_name", HIDDEN, HIDDEN)]
    left, right = (any_pb2.Any(type_url="x/not.in.the.Contract", value=v) for v in (b"a", b"b"))
    assert differences(left, right) == [Difference("value", HIDDEN, HIDDEN)]


def test_unknown_fields_are_reported():
    right = food_pb2.Food.FromString(b"\xfa\xff\x01\x03abc")
    assert [d.path for d in differences(food_pb2.Food(), right)] == ["(unknown fields)"]


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4), st.data())
def test_frames_come_back_whole_or_not_at_all(bodies, data):
    whole = b"".join(struct.pack(">BI", 0, len(b)) + b for b in bodies)
    assert messages(whole) == bodies
    ends = {0}
    for b in bodies:
        ends.add(max(ends) + 5 + len(b))
    cut = data.draw(st.integers(0, len(whole)))
    if cut in ends:
        assert messages(whole[:cut]) == bodies[: sorted(ends).index(cut)]
    else:
        with pytest.raises(FrameError):
            messages(whole[:cut])


def test_compressed_messages_are_refused():
    with pytest.raises(FrameError, match="compressed"):
        messages(b"\x01\x00\x00\x00\x00")
