"""Compares implementations with the definitions of what they stand for, on a small step of a model's own shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from drivers.ops.calls import AttentionSettings, Call, RopeSettings, Settings
from drivers.ops.fusion import Choice, Cover
from drivers.ops.implementation import Implementation, Shapes, Supports
from drivers.ops.ragged import AttentionShape, RaggedBatch, RowSpan, plan_attention
from drivers.ops.reference import LayerKv
from drivers.ops.running import Parts, Pass, Rotary, run_definition

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 6e-3}  # largest error over largest value
SEED = 20111112


@dataclass(frozen=True, slots=True)
class Case:
    """One call in the shapes of a model; two calls of equal cases need not be compared both."""

    implementation: Implementation
    call: Call  # its layer and its KV group are 0
    widths: tuple[int, ...]  # of its inputs
    parts: tuple[tuple[int, ...], ...]  # shapes
    shapes: tuple[object, ...]  # heads and page tokens
    window: int | None
    dtype: torch.dtype


def cases(cover: Cover, shapes: Sequence[Shapes], windows: Sequence[int | None], dtype: torch.dtype) -> tuple[Case, ...]:
    """What of a cover is to be compared: every call that does not run by its definition alone, each case once."""
    found: dict[Case, None] = {}
    for choices, shape in zip(cover.lists, shapes, strict=True):
        for choice, widths in _widths(choices, shape):
            implementation = choice.implementation
            if implementation is not None and implementation.provider != "reference":
                window = next((windows[each.group] for each in choice.call.settings if isinstance(each, AttentionSettings)), None)
                parts = tuple(shape.parts[name] for name in choice.call.parts)
                facts = (shape.heads, shape.page_tokens)
                case = Case(implementation, anonymous(choice.call), widths, parts, facts, window, dtype)
                found[case] = None
    return tuple(found)


def error_of(case: Case, shape: Shapes) -> float:
    """The largest difference from the definition over the largest value, of all that the call gives; NaN where that is not finite."""
    random = torch.Generator().manual_seed(SEED)
    parts: Parts = {name: _part(size, random, case.dtype) for name, size in zip(case.call.parts, case.parts, strict=True)}
    plain = _step(case, shape, random)
    tried = _copy(plain)
    run_definition(case.call, parts, plain)
    case.implementation.run(case.call, parts, tried)
    found = [tried.values[name] for name in case.call.outputs] + [kv.pages for kv in tried.kv]
    expected = [plain.values[name] for name in case.call.outputs] + [kv.pages for kv in plain.kv]
    return worst_error(found, expected)


def worst_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference over the largest expected value; NaN where something is not finite."""
    errors = [
        ((one.float() - two.float()).abs().max() / two.float().abs().max().clamp_min(1e-9)).item()
        for one, two in zip(found, expected, strict=True)
    ]
    return float("nan") if any(map(math.isnan, errors)) else max(errors)


def quarantined(implementations: Sequence[Implementation], errors: dict[str, float]) -> tuple[Implementation, ...]:
    """The same implementations, of which those with an error apply nowhere."""
    return tuple(replace(each, supports=_refusal(errors[each.name])) if each.name in errors else each for each in implementations)


def _refusal(error: float) -> Supports:
    why = f"quarantined: it disagreed with its definition (error {error:.2g})"
    return lambda _call, _shapes: why


def _widths(choices: Sequence[Choice], shapes: Shapes) -> Iterator[tuple[Choice, tuple[int, ...]]]:
    """Each call with the widths of its inputs."""
    known = {"tokens": 1, "positions": 1, "residual": shapes.hidden_size}
    for choice in choices:
        yield choice, tuple(known[name] for name in choice.call.inputs)
        for call in choice.call.stands_for or (choice.call,):
            known |= dict.fromkeys(call.outputs, width_after(call, known, shapes))


def width_after(call: Call, known: dict[str, int], shapes: Shapes) -> int:
    """The width of what a primitive call gives, by the widths of the values before it."""
    if call.op == "embed":
        return shapes.parts[call.parts[0]][-1]
    if call.op == "linear":
        return shapes.parts[call.parts[0]][0]
    if call.op == "paged_attention":
        return shapes.heads.num_heads * shapes.heads.head_dim
    return known[call.inputs[0]] // 2 if call.op == "act_mul" else known[call.inputs[0]]


def anonymous(call: Call) -> Call:
    """The call as if it were of layer 0."""
    settings = tuple(map(_first_layer, call.settings))
    return replace(call, settings=settings, stands_for=tuple(map(anonymous, call.stands_for)))


def _first_layer(settings: Settings) -> Settings:
    if isinstance(settings, AttentionSettings):
        return replace(settings, layer=0, group=0)
    return replace(settings, table=0) if isinstance(settings, RopeSettings) else settings


def _part(size: tuple[int, ...], random: torch.Generator, dtype: torch.dtype) -> Tensor:
    return (torch.randn(size, generator=random) / (size[-1] ** 0.5 if len(size) > 1 else 1.0)).to(dtype)


def _step(case: Case, shape: Shapes, random: torch.Generator) -> Pass:
    """Two decode rows, a first chunk and a later chunk, with a workspace so small that the later one is cut in pieces."""
    page, heads = shape.page_tokens, shape.heads
    batch, num_frames = small_batch(page, case.window, torch.empty(6 * page, 2, heads.num_kv_heads, heads.head_dim, dtype=case.dtype))
    num_tokens = batch.write_frames.shape[0]
    values = {
        name: torch.randn(num_tokens, width, generator=random).to(case.dtype)
        for name, width in zip(case.call.inputs, case.widths, strict=True)
        if name not in ("tokens", "positions")
    }
    values["positions"] = positions_of(batch)
    num_dims = next((each.num_dims for each in case.call.settings if isinstance(each, RopeSettings)), 2)
    pages = torch.randn(num_frames, page, 2, heads.num_kv_heads, heads.head_dim, generator=random).to(case.dtype)
    rotary = Rotary(10000.0 ** -torch.linspace(0, 1, num_dims // 2))
    return Pass(values, case.dtype, heads, [LayerKv(pages, heads)], [batch], [rotary])


def _copy(step: Pass) -> Pass:
    return replace(
        step,
        values={name: value.clone() for name, value in step.values.items()},
        kv=[LayerKv(kv.pages.clone(), kv.heads) for kv in step.kv],
        rotations={},
    )


def small_batch(page: int, window: int | None, workspace: Tensor) -> tuple[RaggedBatch, int]:
    """A step of few rows of every kind, and how many frames its tables name."""
    lengths = [(1, page // 2), (1, 2 * page + 3), (page + 1, 0), (5, 7 * page - 2)]
    rows, start, frame = [], 0, 0
    for count, position in lengths:
        num_pages = (position + count - 1) // page + 1
        rows.append(RowSpan(start, count, position, np.arange(frame, frame + num_pages)[::-1].copy()))
        start, frame = start + count, frame + num_pages
    return plan_attention(AttentionShape(page, window, workspace), rows), frame


def positions_of(batch: RaggedBatch) -> Tensor:
    """The positions of a step's tokens."""
    return torch.cat([torch.arange(row.position, row.position + row.count) for row in batch.spans])
