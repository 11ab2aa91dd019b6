"""Values as bytes, in memory and between processes."""

import zlib
from contextlib import suppress
from dataclasses import dataclass

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st
from nourish.food.v1.food_pb2 import Food, SearchFoodsResponse

from mesh.runtime.cache import codecs, envelope, keys
from mesh.runtime.cache.envelope import Envelope, EnvelopeError

parts = st.recursive(
    st.text() | st.integers() | st.binary(), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6
)


@dataclass(frozen=True)
class Word:
    text: str
    weights: tuple[float, ...] = ()


@given(parts, parts)
def test_two_keys_have_one_digest_when_they_are_equal(one, other):
    assert (keys.digest(one) == keys.digest(other)) == (one == other)


@given(parts)
def test_a_key_comes_back_from_its_bytes(key):
    assert keys.decoded(keys.encoded(key)) == key


@given(st.binary(max_size=30))
def test_bytes_of_no_key_are_refused(data):
    with suppress(ValueError):
        assert keys.digest(keys.decoded(data))


def test_keys_that_python_takes_for_one_are_one():
    assert keys.digest((True, "a")) == keys.digest((1, "a"))
    with pytest.raises(TypeError, match="no key"):
        keys.digest(("a", 0.5))


def test_plain_data_comes_back_as_what_it_was():
    codec = codecs.of(list[Word])
    value = [Word("onion", (0.5, 1.0)), Word("raw")]
    assert codec.decode(codec.encode(value)) == value


def test_what_is_of_another_type_is_refused():
    with pytest.raises(TypeError, match="SearchFoodsResponse came where the cache holds Food"):
        codecs.of(Food).encode(SearchFoodsResponse())
    with pytest.raises(ValueError, match="Expected `str`"):
        codecs.of(Word).decode(codecs.of(dict[str, int]).encode({"text": 1}))


def shelf(field_number, depth_type):
    """A message `Shelf` with a `Box` in it, whose one field varies."""
    file = descriptor_pb2.FileDescriptorProto(name="shelf.proto", package="t", syntax="proto3")
    box = file.message_type.add(name="Box")
    box.field.add(name="depth", number=field_number, type=depth_type, label=1)
    outer = file.message_type.add(name="Shelf")
    outer.field.add(name="box", number=1, type=11, type_name=".t.Box", label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Shelf"))


def test_a_type_has_another_fingerprint_when_anything_in_it_is_defined_otherwise():
    prints = [codecs.of(shelf(*how)).fingerprint for how in ((1, 5), (2, 5), (1, 9), (1, 5))]
    assert prints[0] == prints[3]
    assert len(set(prints)) == 3
    assert codecs.of(list[Word]).fingerprint != codecs.of(Word).fingerprint


@given(st.binary(max_size=5000), st.floats(0, 1e10), st.lists(st.integers(0, 2**64 - 1), max_size=3))
def test_an_envelope_gives_back_what_was_put_in(payload, fresh, heard):
    made = Envelope(payload, fresh, envelope.scope_digest("a b"), tuple(heard))
    assert Envelope.unpack(made.pack()) == made


def test_large_values_are_compressed_where_that_helps():
    assert len(Envelope(b"onion " * 1000, 0.0).pack()) < 300
    noise = b"".join(keys.digest(number) for number in range(500))
    assert len(Envelope(noise, 0.0).pack()) < len(noise) + 100
    assert Envelope(b"x" * (envelope.MAX_VALUE_BYTES + 1), 0.0).pack() is None


@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_refused(data):
    with suppress(EnvelopeError):
        Envelope.unpack(data)


def test_what_would_unfold_to_too_much_is_refused():
    head = Envelope(b"", 0.0).pack()
    bomb = head[:1] + bytes([envelope.COMPRESSED]) + head[2:] + zlib.compress(b"\0" * (16 << 20))
    assert len(bomb) < 100_000
    with pytest.raises(EnvelopeError, match="too large"):
        Envelope.unpack(bomb)
    with pytest.raises(EnvelopeError, match="cut short"):
        Envelope.unpack(Envelope(b"onion " * 1000, 0.0).pack()[:-8])
