"""A model of one call, or of one attention, run by the engine and by the definitions: how far they are apart.

    tokens --embed--> residual --[what the call needs]--> call --[what shows its result]--> residual, or logits

The definitions run in float32 over the same weights; what was rounded into panels is taken from there. Beside the agreement, a token by
itself has to give the same bits as among others (`cpu/kernels.h`, rule 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from drivers.models.layout import Part, Segment
from drivers.models.storage import Kind, Storage, aligned, places_of
from drivers.models.weight import view_part
from drivers.native.check import ATTENTION, NativeCase, PartForm
from drivers.native.engine import ArenaSpan, Engine, NativeModel
from drivers.native.linears import NativeLinears, Panels, native_linears
from drivers.native.lowering import layer_part_bytes, lower
from drivers.native.program import KvGroupShape, ModelShape, RotaryTable
from drivers.native.step import NativeStep
from drivers.ops.calls import Activation, ActivationSettings, Call, Description, EmbedSettings, RopeSettings
from drivers.ops.check import SEED, worst_error
from drivers.ops.ragged import AttentionShape, RowSpan, plan_attention
from drivers.ops.reference import LayerKv
from drivers.ops.running import Parts, Pass, Rotary, run_definition

FLOATS = Storage(Kind.FLOAT32, is_panels=True)
TABLE_ROWS = 128  # of the table that makes the residual, where the call does not
RESIDUAL = 64  # its width, where the call does not say
GRANULE = 64
PLAIN_LENGTHS = [(1, 3), (1, 8), (5, 10), (17, 0)]  # of rows: tokens, position
ALONE = 3  # the row that is tried by itself, too


def error_of(case: NativeCase, engine: Engine) -> float:
    """The largest difference over the largest value; infinite where a row by itself gives other bits than among others."""
    linears = native_linears(engine.level)
    assert linears is not None, "it is the library of the engine"
    little = _Little(case, linears)
    try:
        return little.error(engine)
    finally:
        little.close()


def _silu(x: str, y: str) -> Call:
    return Call("act", (x,), (y,), (), (ActivationSettings(Activation.SILU),))


def _renamed(call: Call, names: dict[str, str]) -> Call:
    inputs, outputs = (tuple(names.get(name, name) for name in each) for each in (call.inputs, call.outputs))
    return replace(call, inputs=inputs, outputs=outputs, stands_for=tuple(_renamed(each, names) for each in call.stands_for))


class _Little:
    """The lists of calls around a case, their weights, pages, and a step."""

    def __init__(self, case: NativeCase, linears: NativeLinears) -> None:
        self.case = case
        self._random = torch.Generator().manual_seed(SEED)
        self._model: NativeModel | None = None
        self._has_attention = any(call.op == "paged_attention" for call in case.calls)
        first, layer, last = self._lists()
        self._num_tokens = self._forms[0][0][1][0]
        self.description = Description(first, (layer,), last)
        self._fill(linears)
        self._make_step()

    # ------------------------------------------------------------------------------------------------------------------- what is run

    def _lists(self) -> tuple[tuple[Call, ...], tuple[Call, ...], tuple[Call, ...]]:
        call, show = self.case.calls[0], (_silu("residual", "logits"),)
        primitive = call.stands_for or (call,)
        self._forms: list[list[PartForm]] = [[], list(self.case.parts), []]
        if primitive[0].op == "embed":
            self._forms = [list(self.case.parts), [], []]
            return (call,), (), show
        width = self._rows() if primitive[-1].op == "add" and len(call.parts) else self.case.width
        width = RESIDUAL if primitive[0].op in ATTENTION else width
        self._forms[0].append(("little.table", (TABLE_ROWS, width), FLOATS))
        first = (Call("embed", ("tokens",), ("residual",), ("little.table",), (EmbedSettings(),)),)
        if primitive[0].op == "embed_positions":
            self._forms = [[*self._forms[0], *self.case.parts], [], []]
            return (*first, call), (), show
        if primitive[0].op in ATTENTION:
            heads = self.case.heads
            before = self._linear(("residual", call.inputs[0]), self.case.width, width)
            after = self._linear((self.case.calls[-1].outputs[0], "y"), width, heads.num_heads * heads.head_dim)
            return first, (before, *self.case.calls, after, Call("add", ("y", "residual"), ("residual",))), show
        if primitive[-1].op == "add":
            other = dict.fromkeys(call.outputs, "residual")
            before = self._linear(("residual", "x"), self.case.width, width) if self.case.width != width else _silu("residual", "x")
            return first, (before, _renamed(call, {call.inputs[0]: "x", **other})), show
        self._forms = [self._forms[0], [], self._forms[1]]
        if primitive[-1].op == "softcap":
            return first, (), (_silu("residual", "logits"), _renamed(call, {call.inputs[0]: "logits"}))
        return first, (), (_renamed(call, {call.inputs[0]: "residual", call.outputs[0]: "logits"}),)

    def _rows(self) -> int:
        """The width of what a call with weights gives."""
        matrices = [shape for _, shape, _ in self.case.parts if len(shape) > 1]
        return matrices[-1][-2] if matrices else self.case.width

    def _linear(self, ends: tuple[str, str], rows: int, columns: int) -> Call:
        name = f"little.{ends[1]}"
        self._forms[1].append((name, (rows, columns), FLOATS))
        return Call("linear", ends[:1], ends[1:], (name,))

    # --------------------------------------------------------------------------------------------------------------------- weights

    def _fill(self, linears: NativeLinears) -> None:
        self._segments: list[Segment] = []
        self._memory: list[Tensor] = []
        self.parts: list[Parts] = []
        for forms in self._forms:
            placed: list[Part] = []
            end = 0
            for name, shape, storage in dict.fromkeys(forms):
                placed.append(Part(name, shape, (), storage, end))
                end += aligned(placed[-1].places.size_bytes)
            memory = _aligned_zeros(end)
            self._segments.append(Segment("little", tuple(placed), end))
            self._memory.append(memory)
            self.parts.append(
                {part.name: self._part(part, memory[part.offset_bytes :][: part.places.size_bytes], linears) for part in placed}
            )

    def _part(self, part: Part, place: Tensor, linears: NativeLinears) -> Tensor:
        """Random values in a part's form; answers them in float32, as they are there."""
        view = view_part(place, part.storage, part.shape)
        if isinstance(view, Tensor):
            return view.copy_(1.0 + 0.3 * torch.randn(part.shape, generator=self._random))
        rows, columns = part.shape[-2:]
        for index in range(places_of(part.storage, part.shape).num_matrices):
            panels = Panels(part.storage, part.shape, place, index)
            if part.storage.has_offsets:
                self._pack_codes(panels, linears)
            else:
                linears.pack(panels, torch.randn(rows, columns, generator=self._random) / columns**0.5)
        return view.dequantize(torch.float32)

    def _pack_codes(self, panels: Panels, linears: NativeLinears) -> None:
        top = 16 if panels.storage.kind is Kind.INT4 else 256
        groups = panels.storage.num_groups(panels.columns)
        codes = torch.randint(0, top, (panels.rows, panels.columns), generator=self._random, dtype=torch.uint8)
        scales = ((0.5 + torch.rand(panels.rows, groups, generator=self._random)) / (top * panels.columns**0.5)).half().float()
        linears.pack_codes(panels, codes, scales, scales * torch.randint(0, top, scales.shape, generator=self._random))

    # ------------------------------------------------------------------------------------------------------------------------ steps

    def _make_step(self) -> None:
        """Two decode rows, a first chunk and a later one, and the step that computed what is before them."""
        page, heads = self.case.page_tokens, self.case.heads
        lengths = [(1, page // 2), (1, 2 * page + 3), (5, 5 * page - 2), (page + 1, 0)] if self._has_attention else PLAIN_LENGTHS
        rows: list[RowSpan] = []
        frame = start = 0
        for count, position in lengths:
            num_pages = (position + count - 1) // page + 1
            rows.append(RowSpan(start, count, position, np.arange(frame, frame + num_pages)[::-1].copy()))
            start, frame = start + count, frame + num_pages
        self._steps = [_from_zero(rows), rows]
        self._attention = AttentionShape(page, self.case.window, torch.empty(6 * page, 2, heads.num_kv_heads, heads.head_dim))
        dims = next((each.num_dims for call in self.case.calls for each in call.settings if isinstance(each, RopeSettings)), 2)
        self._rotary = Rotary(10000.0 ** -torch.linspace(0, 1, dims // 2))
        self._pages = torch.zeros(frame, page, 2, heads.num_kv_heads, heads.head_dim)
        shape = ModelShape(
            heads.num_heads,
            heads.num_kv_heads,
            heads.head_dim,
            self._num_tokens,
            max(24, 6 * page) if self._has_attention else 24,
            page,
            GRANULE,
            self.case.kv_kind,
            (KvGroupShape(0, self.case.window),),
            (0,),
            (RotaryTable(self._rotary.frequencies.numpy()),),
        )
        self._granules = -(-layer_part_bytes(shape) // GRANULE)
        self._shape = replace(shape, groups=(KvGroupShape(self._granules * GRANULE, self.case.window),))
        self._arena = _aligned_zeros(frame * self._granules * GRANULE)

    def error(self, engine: Engine) -> float:
        """See `error_of`."""
        program = lower(self.description, self._segments, self._shape)
        self._model = model = NativeModel(engine, program, ArenaSpan(self._arena.data_ptr(), self._arena.numel()), 256)
        bases = np.array([memory.data_ptr() for memory in self._memory], dtype=np.uint64)
        worst = 0.0
        for rows in self._steps:
            if not rows:
                continue
            tokens = torch.randint(0, self._num_tokens, (rows[-1].start + rows[-1].count,), generator=self._random)
            found, expected = _natively(model, self._native_step(tokens, rows), bases), self._by_definition(tokens, rows)
            worst = max(worst, worst_error(found, expected), key=lambda error: float("inf") if math.isnan(error) else error)
        alone = [replace(rows[ALONE - 1], start=0)]
        span = slice(rows[ALONE - 1].start, rows[ALONE - 1].start + rows[ALONE - 1].count)
        again = _natively(model, self._native_step(tokens[span], alone), bases)
        is_same = all(torch.equal(one, many[span]) for one, many in zip(again, found, strict=True))
        return worst if is_same else float("inf")

    def _native_step(self, tokens: Tensor, rows: Sequence[RowSpan]) -> NativeStep:
        spans = [row.start for row in rows], [row.count for row in rows], [row.position for row in rows]
        return NativeStep.of(tokens.numpy(), spans, [[row.frames * self._granules for row in rows]])

    def _by_definition(self, tokens: Tensor, rows: Sequence[RowSpan]) -> list[Tensor]:
        positions = torch.cat([torch.arange(row.position, row.position + row.count) for row in rows])
        batch = plan_attention(self._attention, rows)
        kv = LayerKv(self._pages, self.case.heads)
        step = Pass({"tokens": tokens, "positions": positions}, torch.float32, self.case.heads, [kv], [batch], [self._rotary])
        everything = {**self.parts[0], **self.parts[1], **self.parts[2]}
        for call in (*self.description.first, *self.description.layers[0]):
            run_definition(call, everything, step)
        residual = step.values["residual"].clone()
        for call in self.description.last:
            run_definition(call, everything, step)
        return [residual, step.values["logits"]]

    def close(self) -> None:
        """Forget the program."""
        if self._model is not None:
            self._model.close()


def _natively(model: NativeModel, step: NativeStep, bases: np.ndarray) -> list[Tensor]:
    residual = model.forward(step, bases)
    return [residual, model.logits(residual, range(len(step.tokens)), bases)]


def _from_zero(rows: Sequence[RowSpan]) -> list[RowSpan]:
    """The same rows, as long as what is before them."""
    found: list[RowSpan] = []
    start = 0
    for row in sorted(rows, key=lambda row: row.position):
        if row.position:
            found.append(RowSpan(start, row.position, 0, row.frames))
            start += row.position
    return found


def _aligned_zeros(size_bytes: int) -> Tensor:
    padded = torch.zeros(size_bytes + 64, dtype=torch.uint8)
    start = -padded.data_ptr() % 64
    return padded[start : start + size_bytes]
