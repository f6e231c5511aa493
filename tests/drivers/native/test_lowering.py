"""From calls to records: what becomes one op, and what is refused before anything could read outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from drivers.models.description import describe
from drivers.models.layout import Segment, decoder_segments
from drivers.models.storage import Kind, Storage
from drivers.native.lowering import layer_part_bytes, lower
from drivers.native.program import NATIVE_OPS, KvGroupShape, ModelShape, NotCovered, Program, RotaryTable
from drivers.native.records import SIZES
from drivers.ops.calls import Call, Description, RopeSettings
from tests.drivers.native.engine_rig import BFLOAT16, FLOAT32, LLAMA, MODELS, VECTOR, Rig, form_of, fused

SHAPE = ModelShape(
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=203,
    max_positions=2048,
    page_tokens=16,
    granule_bytes=256,
    kv_kind=Kind.BFLOAT16,
    groups=(KvGroupShape(3 * 2048),),
    layer_bytes=(0, 2048, 4096),
    rotary=(RotaryTable(np.ones(8, dtype=np.float32)),),
)
SEGMENTS = decoder_segments(LLAMA, form_of(BFLOAT16))  # type: ignore[arg-type]


def ops_of(program: Program, layer: int = 0) -> list[str]:
    return [NATIVE_OPS[op.profiled_as].name for op in program.ops[program.layers[layer] : program.layers[layer + 1]]]


def lowered(is_fused: bool = True, shape: ModelShape = SHAPE, segments: tuple[Segment, ...] = SEGMENTS) -> Program:
    description = describe(LLAMA)
    return lower(fused(description, LLAMA, segments) if is_fused else description, segments, shape)


def with_part(name: str, /, **changes: object) -> tuple[Segment, ...]:
    """The same segments, one part of the first layer changed."""
    parts = tuple(replace(part, **changes) if part.name == name else part for part in SEGMENTS[1].parts)  # type: ignore[arg-type]
    return (SEGMENTS[0], replace(SEGMENTS[1], parts=parts), *SEGMENTS[2:])


def test_a_layer_is_six_ops_when_it_is_fused() -> None:
    assert ops_of(lowered()) == ["norm_linear", "rope_kv_write", "paged_attention", "linear_add", "norm_linear_act_mul", "linear_add"]


def test_single_calls_are_ops_of_their_own_but_for_what_is_written_to_pages() -> None:
    assert ops_of(lowered(is_fused=False)) == [
        *("rms_norm", "linear", "rope_kv_write", "paged_attention", "linear", "add"),
        *("rms_norm", "linear", "act_mul", "linear", "add"),
    ]


def test_halves_that_are_no_whole_panels_are_not_fused() -> None:
    config = MODELS["odd"]
    segments = decoder_segments(config, form_of(BFLOAT16))  # type: ignore[arg-type]
    shape = replace(SHAPE, rotary=(RotaryTable(np.ones(4, dtype=np.float32)),))

    program = lower(fused(describe(config), config, segments), segments, shape)

    assert ops_of(program)[4:] == ["rms_norm", "linear", "act_mul", "linear_add"]


def test_a_tied_head_is_the_table_of_the_first_segment() -> None:
    program = lowered()

    assert (program.ops[-1].weight.segment, program.ops[-1].norm_weight.segment) == (0, len(SEGMENTS) - 1)


def test_weights_are_where_the_layout_says() -> None:
    program = lowered()
    part = next(part for part in SEGMENTS[2].parts if part.name == "gate_up.weight")
    record = program.ops[program.layers[1] + 4]

    assert (record.weight.segment, record.weight.values) == (2, part.offset_bytes)
    assert (record.weight.rows, record.weight.columns, record.layer, record.place) == (320, 96, 1, 2)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (replace(SHAPE, page_tokens=24), "pages are of 24 tokens"),
        (replace(SHAPE, head_dim=24), "head_dim is 24"),
        (replace(SHAPE, head_dim=272), "head_dim is 272"),
        (replace(SHAPE, num_heads=5), "5 query heads"),
        (replace(SHAPE, kv_kind=Kind.FLOAT16), "pages of float16"),
        (replace(SHAPE, rotary=()), "rotary table 0"),
        (replace(SHAPE, groups=()), "has no pages"),
        (replace(SHAPE, layer_bytes=(0, 2048, 4097)), "leaves its frame"),
        (replace(SHAPE, layer_bytes=(-64, 2048, 4096)), "leaves its frame"),
        (replace(SHAPE, num_kv_heads=3), "is not queries, keys and values"),
        (replace(SHAPE, vocab_size=300), "embedding has 203 rows of 300"),
    ],
)
def test_shapes_without_native_code_are_refused_with_the_reason(shape: ModelShape, said: str) -> None:
    with pytest.raises(NotCovered, match=said):
        lowered(shape=shape)


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        (with_part("qkv.weight", storage=Storage(Kind.BFLOAT16)), "qkv.weight is not in panels"),
        (with_part("qkv.weight", shape=(160, 64)), "inputs are 96 wide"),
        (with_part("qkv.weight", offset_bytes=32), "not aligned"),
        (with_part("down.weight", offset_bytes=SEGMENTS[1].size_bytes - 64), "leaves segment"),
        (with_part("input_norm", storage=Storage(Kind.BFLOAT16)), "input_norm is .* in bfloat16"),
        (with_part("input_norm", shape=(95,)), "input_norm is .95"),
        (with_part("output.weight", shape=(80, 96)), "add of 80 wide rows"),
        (with_part("input_norm", name="other"), "has no part input_norm"),
        (SEGMENTS[:-1], "lists of calls"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_reason(segments: tuple[Segment, ...], said: str) -> None:
    with pytest.raises(NotCovered, match=said):
        lowered(is_fused=False, segments=segments)


def changed(change: Callable[[tuple[Call, ...]], tuple[Call, ...]]) -> Description:
    description = describe(LLAMA)
    return replace(description, layers=(change(description.layers[0]), *description.layers[1:]))


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (changed(lambda calls: (replace(calls[0], op="spectral_norm"), *calls[1:])), "spectral_norm"),
        (changed(lambda calls: tuple(call for call in calls if call.op != "kv_write")), "rope"),
        (changed(lambda calls: (replace(calls[0], inputs=("nothing",)), *calls[1:])), "nothing is read before"),
        (changed(lambda calls: (replace(calls[0], settings=(RopeSettings(0, 16),)), *calls[1:])), "without its NormSettings"),
        (changed(lambda calls: (*calls[:5], replace(calls[5], outputs=calls[5].inputs), *calls[6:])), "writes what it reads, mixed"),
        (replace(describe(LLAMA), last=describe(LLAMA).last[:1]), "no linear into logits"),
        (replace(describe(LLAMA), layers=(*describe(LLAMA).layers[:2], describe(LLAMA).layers[2][-1:])), "y is read before it is written"),
    ],
)
def test_calls_without_native_code_are_refused_with_the_reason(description: Description, said: str) -> None:
    with pytest.raises(NotCovered, match=said):
        lower(description, SEGMENTS, SHAPE)


def test_a_layer_takes_as_much_of_a_page_as_the_kernels_say() -> None:
    assert layer_part_bytes(SHAPE) == 2 * 16 * 2 * 16 * 2
    for kind in (Kind.INT8, Kind.FLOAT8):
        assert layer_part_bytes(replace(SHAPE, kv_kind=kind)) == 2 * 16 * 2 * 16 + 2 * 16 * 2 * 4


def test_records_are_those_of_the_library() -> None:
    rig = Rig(LLAMA, FLOAT32)  # opens an engine, which compares them
    rig.close()

    assert all(size % 8 == 0 for size in SIZES)
    assert VECTOR.kind is Kind.FLOAT32
