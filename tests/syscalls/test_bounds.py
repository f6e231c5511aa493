"""Bounds of requests: every field has one, and every one holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from kerneld.errors import InvalidArgument
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls.bounds import BoundMissing, compile_bounds
from syscalls.fields import Labels, Many, Number, Text
from syscalls.table import build_table
from tests.syscalls.requests import ID, bound_of, well_formed

REQUESTS = {row.request.DESCRIPTOR.name: row.request for row in build_table().values()}


def leaves(message: Any, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Every field of a request, those of nested messages too, as the way to it."""
    for field in message.fields:
        yield (*path, field)
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from leaves(field.message_type, (*path, field))


def bad_values(field: FieldDescriptor) -> Iterator[Any]:
    """Values that the field's type can hold and its bound does not allow."""
    bound = bound_of(field)
    if field.enum_type is not None:
        yield [999] if field.is_repeated else 999
    elif isinstance(bound, Number):
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            yield from (math.nan, math.inf, -math.inf, bound.low - 1, bound.high + 1)
        elif bound.high < (1 << 31) - 1:
            yield int(bound.high) + 1
    elif isinstance(bound, Text):
        yield "a" * (bound.max_chars + 1) if bound.max_chars < 1 << 20 else None
        yield "\x00\x01 bad" if bound.pattern is not None else None
    elif isinstance(bound, Many):
        yield from bad_lists(bound)
    elif isinstance(bound, Labels):
        good, bad = ("v", "v" * (bound.value.max_chars + 1)) if isinstance(bound.value, Text) else (1, 99)
        yield {f"k{i}": good for i in range(bound.most + 1)}
        yield {"k": bad}
        yield {"\n": good}


def bad_lists(bound: Many) -> Iterator[Any]:
    """Lists that are too long, or hold what no item may be."""
    if isinstance(bound.each, Number):
        yield [int(bound.each.low)] * (bound.most + 1)
        yield [int(bound.each.low), int(bound.each.high) + 1]
    elif isinstance(bound.each, Text):
        yield ["a"] * (bound.most + 1)
        yield ["a", "b" * (bound.each.max_chars + 1)]


def put(request: Any, way: tuple[FieldDescriptor, ...], value: Any) -> None:
    """Set a field somewhere inside a request."""
    target = request
    for field in way[:-1]:
        target = getattr(target, field.name).add() if field.is_repeated else getattr(target, field.name)
    name = way[-1].name
    if isinstance(value, dict):
        getattr(target, name).clear()
        getattr(target, name).update(value)
    elif isinstance(value, list):
        target.ClearField(name)
        getattr(target, name).extend(value)
    else:
        setattr(target, name, value)


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_every_field_has_a_bound_and_a_well_formed_request_passes(name: str) -> None:
    compile_bounds(REQUESTS[name])(well_formed(REQUESTS[name]))


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_every_field_is_refused_beyond_its_bound_and_named(name: str) -> None:
    check = compile_bounds(REQUESTS[name])
    for way in leaves(REQUESTS[name].DESCRIPTOR):
        for value in bad_values(way[-1]):
            if value is None:
                continue
            request = well_formed(REQUESTS[name])
            put(request, way, value)
            with pytest.raises(InvalidArgument) as refusal:
                check(request)
            assert way[-1].name in refusal.value.field or way[0].name in refusal.value.field
            assert refusal.value.problem.endswith(".")


def test_a_field_without_a_bound_stops_the_start() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="loose.proto", package="loose", syntax="proto3")
    message = file.message_type.add(name="Loose")
    message.field.add(name="wild_thing", number=1, type=9, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    with pytest.raises(BoundMissing, match="wild_thing"):
        compile_bounds(GetMessageClass(pool.FindMessageTypeByName("loose.Loose")))


@pytest.mark.parametrize("bad", ["", "abc", ID[:-1], ID + "0", ID.upper(), "../../etc/passwd", "g" * 32, ID[:-1] + "\n"])
def test_an_id_is_32_hexadecimal_digits(bad: str) -> None:
    with pytest.raises(InvalidArgument, match="context_id"):
        compile_bounds(pb.StatContextRequest)(pb.StatContextRequest(context_id=bad))


def test_the_path_of_a_nested_field_is_told() -> None:
    request = pb.InferRequest(context_id=ID, sampling=pb.SamplingParameters(top_p=1.5))
    with pytest.raises(InvalidArgument) as refusal:
        compile_bounds(pb.InferRequest)(request)
    assert refusal.value.message == "sampling.top_p: must be between 0 and 1; it is 1.5."


def test_the_index_of_a_list_item_is_told() -> None:
    messages = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi"), pb.ChatMessage(role="", content="x")])
    with pytest.raises(InvalidArgument) as refusal:
        compile_bounds(pb.InferRequest)(pb.InferRequest(context_id=ID, messages=messages))
    assert refusal.value.field == "messages.messages[1].role"


def test_a_token_id_beyond_the_bound_is_named_by_its_index() -> None:
    request = pb.InferRequest(context_id=ID, tokens=pb.TokenList(ids=[1, 2, 1 << 31]))
    with pytest.raises(InvalidArgument) as refusal:
        compile_bounds(pb.InferRequest)(request)
    assert refusal.value.field == "tokens.ids[2]"


def test_a_field_that_is_left_out_is_not_checked() -> None:
    compile_bounds(pb.InferRequest)(pb.InferRequest(context_id=ID, sampling=pb.SamplingParameters()))


def test_a_missing_message_that_is_required_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="grant: is required"):
        compile_bounds(pb.GrantContextRequest)(pb.GrantContextRequest(context_id=ID))


def test_a_quantization_in_capitals_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InvalidArgument, match=r"quant: must be int8, int4 \(kv_quant: int8, fp8\) or another name of the driver"):
        compile_bounds(pb.LoadModelRequest)(pb.LoadModelRequest(path="/m", name="m", quant="INT8"))
