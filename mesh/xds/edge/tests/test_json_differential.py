"""The edge's JSON check against protobuf's own strict parser, on random bodies."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mesh.xds.edge.tests.running_edge import Edge
from mesh.xds.edge.tests.shelf import Messages

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODIES, WILD = 400, 0.06  # how many, and the share of values that are anything at all
GOOD = {"Timestamp": '"2026-01-02T03:04:05Z"', "Duration": '"3.5s"', "FieldMask": '"a,b"', "StringValue": '"s"'}
GOOD |= {"Value": "[1,{}]", "ListValue": "[[],2]", "Struct": '{"a":{"b":[1]}}', "Any": "{}"}


def wild(dice: random.Random, depth: int = 2) -> str:
    """Any JSON, of any type."""
    kind = dice.randrange(8 if depth else 6)
    if kind == 6:
        return "[" + ",".join(wild(dice, depth - 1) for _ in range(dice.randrange(3))) + "]"
    if kind == 7:
        return "{" + ",".join(f'"k{n}":{wild(dice, depth - 1)}' for n in range(dice.randrange(3))) + "}"
    return dice.choice(['"a"', "1", "-2.5e1", "true", "null", '"KIND_NOVEL"', '""', '"\\u00e9"', "01", "tru", '"\\x"'])


def value(dice: random.Random, field: FieldDescriptor, depth: int) -> str:
    """A value for a field, mostly one that it takes."""
    if dice.random() < WILD:
        return wild(dice)
    if field.message_type and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return "{" + ",".join(f'"{n}":{single(dice, inner, depth)}' for n in range(dice.randrange(3))) + "}"
    if field.is_repeated:
        return "[" + ",".join(single(dice, field, depth) for _ in range(dice.randrange(3))) + "]"
    return single(dice, field, depth)


def single(dice: random.Random, field: FieldDescriptor, depth: int) -> str:
    if field.message_type:
        return GOOD.get(field.message_type.name) or message(dice, field.message_type, depth - 1)
    by_type = {FieldDescriptor.CPPTYPE_STRING: '"aGk="', FieldDescriptor.CPPTYPE_BOOL: "true"}
    return by_type.get(field.cpp_type, dice.choice(["0", "1"]))


def message(dice: random.Random, kind: Descriptor, depth: int) -> str:
    """An object with some of the fields, under either name, now and then one too many or one twice."""
    if depth < 0:
        return "{}"
    fields = dice.sample(list(kind.fields), dice.randrange(min(4, len(kind.fields)) + 1))
    pairs = [f'"{dice.choice([f.json_name, f.name])}":{value(dice, f, depth)}' for f in fields]
    if dice.random() < WILD:
        pairs.append(dice.choice([f'"{dice.choice(["bogus", "Name", "k"])}":{wild(dice)}', *pairs[:1]]))
    return "{" + dice.choice(["", " ", "\n"]) + ",".join(pairs) + "}"


def accepted(text: str, messages: Messages) -> bool:
    """Whether protobuf's own parser takes it, and no key stands there twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    try:
        json_format.Parse(text, messages.Book(), descriptor_pool=messages.pool)
        json.loads(text, object_pairs_hook=unique)
    except TypeError:  # its own defect: null in a map
        return True
    except (json_format.ParseError, ValueError, AssertionError):
        return False
    return True


async def test_the_edge_takes_nothing_that_protobufs_own_parser_refuses(edge: Edge, messages: Messages) -> None:
    """And most of what that takes: the edge is stricter with a field under both of its names, and with bytes."""
    dice = random.Random(20261122)
    bodies = [message(dice, messages.Book.DESCRIPTOR, 3) for _ in range(BODIES)]
    headers = {"content-type": "application/json"}
    some = asyncio.Semaphore(8)

    async def post(body: str) -> httpx.Response:
        async with some:
            return await edge("POST", "/api/v1/books", content=body, headers=headers)

    answers = await asyncio.gather(*map(post, bodies))
    taken = {body for body, answer in zip(bodies, answers, strict=True) if answer.status_code == 200}
    assert {answer.status_code for answer in answers} == {200, 400}
    assert [body for body in taken if not accepted(body, messages)] == []
    good = {body for body in bodies if accepted(body, messages)}
    assert len(good - taken) < len(good) / 20
    assert len(good) < len(set(bodies))
