"""Compares native ops with the definitions of what they stand for, in the shapes and forms of a model, before it runs.

A case is one call, or all calls of one attention: what is written to pages is read back by nobody else. How it is tried, in a little model
of its own, is `drivers.native.little`'s. Matrices have few rows there, as one row is like another; what their columns are is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from drivers.models.layout import Part, Segment
from drivers.models.storage import Kind, Storage
from drivers.native.program import ModelShape
from drivers.ops.calls import AttentionSettings, Call, ExpertSettings
from drivers.ops.check import anonymous, width_after
from drivers.ops.fusion import Cover
from drivers.ops.implementation import Shapes
from drivers.ops.ragged import HeadShape

# The largest error over the largest value. Inputs of a linear are rounded to what its weights are multiplied in. A key or value of e4m3 is
# half a step of three bits from what it was, 1/16 of itself at most; over 17 families' shapes attention was 0.024 off, of int8 0.005.
TOLERANCES = {Kind.FLOAT32: 1e-4, Kind.BFLOAT16: 3e-2, Kind.INT8: 5e-2, Kind.INT4: 5e-2, Kind.FLOAT8: 2**-4}
ATTENTION = {"head_norm", "rope", "kv_write", "paged_attention"}
ROWS = 32
NUM_EXPERTS, TOP_K = 6, 3  # at most

PartForm = tuple[str, tuple[int, ...], Storage]  # name, shape, form


@dataclass(frozen=True, slots=True)
class NativeCase:
    """What is tried, in shapes and forms; two calls of equal cases need not be tried both."""

    calls: tuple[Call, ...]  # of layer 0 and KV group 0
    parts: tuple[PartForm, ...]
    width: int  # of the first call's first input
    heads: HeadShape
    page_tokens: int
    kv_kind: Kind
    window: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """The implementations that are tried."""
        return tuple(f"native.{call.op}" for call in self.calls)

    @property
    def tolerance(self) -> float:
        """What may differ."""
        kinds = {storage.kind for _, shape, storage in self.parts if len(shape) > 1}
        if any(call.op == "paged_attention" for call in self.calls):
            kinds.add(self.kv_kind)
        return max((TOLERANCES[kind] for kind in kinds), default=TOLERANCES[Kind.FLOAT32])


def native_cases(cover: Cover, segments: Sequence[Segment], shape: ModelShape) -> tuple[NativeCase, ...]:
    """What of a cover is to be tried, each case once."""
    found: dict[NativeCase, None] = {}
    heads = HeadShape(shape.num_heads, shape.num_kv_heads, shape.head_dim)
    first = {part.name: part for part in segments[0].parts}
    for choices, segment in zip(cover.lists, segments, strict=True):
        parts = {**first, **{part.name: part for part in segment.parts}}
        shapes = Shapes(heads, shape.page_tokens, 0, "", {name: part.shape for name, part in parts.items()})
        for calls, width in _tried([choice.call for choice in choices], shapes, _hidden_size(segments)):
            groups = [each.group for call in calls for each in call.settings if isinstance(each, AttentionSettings)]
            window = shape.groups[groups[0]].window if groups else None
            some = tuple(_few_experts(anonymous(call)) for call in calls)
            found[NativeCase(some, _few_rows(calls, parts), width, heads, shape.page_tokens, shape.kv_kind, window)] = None
    return tuple(found)


def _hidden_size(segments: Sequence[Segment]) -> int:
    return next(part.shape[-1] for part in segments[0].parts if part.name == "embedding")


def _tried(calls: Sequence[Call], shapes: Shapes, hidden_size: int) -> Iterator[tuple[tuple[Call, ...], int]]:
    """The calls that are tried together, and how wide the first of them begins."""
    known = {"tokens": 1, "positions": 1, "residual": hidden_size}
    together: tuple[Call, ...] = ()
    width = 0
    for call in calls:
        primitive = call.stands_for or (call,)
        is_attention = primitive[0].op in ATTENTION
        if together and not is_attention:
            yield together, width
            together = ()
        width = width if together else known[call.inputs[0]]
        together += (call,)
        for each in primitive:
            known |= dict.fromkeys(each.outputs, width_after(each, known, shapes))
        if not is_attention:
            yield together, width
            together = ()
    if together:
        yield together, width


def _few_experts(call: Call) -> Call:
    settings = tuple(
        replace(each, num_experts=min(each.num_experts, NUM_EXPERTS), top_k=min(each.top_k, TOP_K))
        if isinstance(each, ExpertSettings)
        else each
        for each in call.settings
    )
    return replace(call, settings=settings)


def _few_rows(calls: Sequence[Call], parts: Mapping[str, Part]) -> tuple[PartForm, ...]:
    """The parts of calls in their forms, with as many columns as they have but fewer rows."""
    found: list[PartForm] = []
    for call in calls:
        for each in call.stands_for or (call,):
            shapes = [parts[name].shape for name in each.parts]
            if each.op in ("linear", "embed", "embed_positions"):
                rows = min(shapes[0][0], 4 * ROWS + shapes[0][0] % ROWS)
                shapes = [(rows, *shape[1:]) for shape in shapes]
            elif each.op == "experts":
                shapes = _few_of_experts(shapes, parts[each.parts[2]].storage.group)
            found += [(name, shape, parts[name].storage) for name, shape in zip(each.parts, shapes, strict=True)]
    return tuple(found)


def _few_of_experts(shapes: Sequence[tuple[int, ...]], group: int) -> list[tuple[int, ...]]:
    """Of a router, of gates and ups, and of downs."""
    (num, hidden), inner = shapes[0], shapes[2][-1]
    num, inner = min(num, NUM_EXPERTS), min(inner, max(group, ROWS))
    return [(num, hidden), (num, 2 * inner, hidden), (num, hidden, inner)]
