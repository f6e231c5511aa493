"""From calls of ops to the program that the native engine runs: records of numbers, checked once, so that a step need not be.

    lower(description, segments, shape) -> Program          raises NotCovered, which says what has no native code

Primitive calls and fused ones are taken alike: of a fused call only the calls that it stands for are looked at, and a run of them becomes
one record where `program.NATIVE_OPS` has it. `head_norm`, `rope` and `kv_write` become one even where they come one by one. A weight is
named by segment and byte offset in it; where the segment is, the engine is told with every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from drivers.models.layout import Segment
from drivers.models.storage import BITS, PANEL_ROWS, Kind
from drivers.native.program import ELSEWHERE, INDEX_OF, PLACES, ModelShape, NotCovered, Program
from drivers.native.records import ACTIVATIONS, Code, Epilogue, Norm, OpRecord, no_op
from drivers.native.symbols import Symbols
from drivers.ops.calls import (
    ActivationSettings,
    AttentionSettings,
    Call,
    Description,
    EmbedSettings,
    ExpertSettings,
    HeadNormSettings,
    NormSettings,
    RopeSettings,
    SoftcapSettings,
)

MAX_HEAD_DIM = 256
NORMS = {"rms_norm": Norm.RMS, "layer_norm": Norm.LAYER}
EPILOGUES = {"add": Epilogue.ADD, "act": Epilogue.ACT, "act_mul": Epilogue.ACT_MUL}
UNWRITTEN = {"head_norm", "rope"}
Some = TypeVar("Some")


def lower(description: Description, segments: Sequence[Segment], shape: ModelShape) -> Program:
    """Make the program of a model whose segments are the first, one for each layer, and the last.

    A part that a list's own segment lacks is looked for in the first one (a tied head). Raises: NotCovered.
    """
    _check_shape(shape)
    lists = (description.first, *description.layers, description.last)
    if len(lists) != len(segments):
        raise NotCovered(f"there are {len(lists)} lists of calls and {len(segments)} segments")
    lowering = _Lowering(segments, shape)
    starts = [lowering.add(idx, calls, is_layer=0 < idx < len(lists) - 1) for idx, calls in enumerate(lists)]
    logits = lowering.symbols.values.get("logits")
    if logits is None or lowering.records[-1].output != logits:  # of a model, a linear; of a model made to try one op, whatever that is
        raise NotCovered("the last call does not end in logits: there is no linear into logits")
    return Program(tuple(lowering.records), tuple(starts[1:]), tuple(lowering.symbols.widths), logits, shape, len(segments))


def _check_shape(shape: ModelShape) -> None:
    if shape.page_tokens % PANEL_ROWS:
        raise NotCovered(f"pages are of {shape.page_tokens} tokens, which is not a multiple of {PANEL_ROWS}")
    if shape.head_dim % PANEL_ROWS or shape.head_dim > MAX_HEAD_DIM:
        raise NotCovered(f"head_dim is {shape.head_dim}, not a multiple of {PANEL_ROWS} up to {MAX_HEAD_DIM}")
    if shape.num_heads % shape.num_kv_heads:
        raise NotCovered(f"{shape.num_heads} query heads do not share {shape.num_kv_heads} KV heads evenly")
    if shape.kv_kind not in (Kind.FLOAT32, Kind.BFLOAT16, Kind.INT8, Kind.FLOAT8):
        raise NotCovered(f"pages of {shape.kv_kind.value}")


def _runs(calls: Sequence[Call]) -> Iterator[tuple[Call, ...]]:
    """The calls that become one record each, if that is to be had."""
    pending: tuple[Call, ...] = ()
    for call in calls:
        run = pending + (call.stands_for or (call,))
        pending = run if run[-1].op in UNWRITTEN else ()
        if not pending:
            yield run
    if pending:
        yield pending


class _Lowering:
    """Records so far."""

    def __init__(self, segments: Sequence[Segment], shape: ModelShape) -> None:
        self.records: list[OpRecord] = []
        self.symbols = Symbols(segments)
        self._shape = shape
        self._layer = -1

    def add(self, idx: int, calls: Sequence[Call], *, is_layer: bool) -> int:
        """Lower the list of segment `idx`; answers the index of its first record."""
        start, self._layer = len(self.records), idx - 1 if is_layer else -1
        self.symbols.begin(idx)
        for run in _runs(calls):
            self._add_run(run)
        return start

    def _add_run(self, run: tuple[Call, ...]) -> None:
        ops = tuple(call.op for call in run)
        is_whole = ops in INDEX_OF and (ops[-1] != "act_mul" or len(ops) == 1 or self.symbols.has_halves(run[-2].parts[0]))
        if not is_whole and len(run) > 1 and not UNWRITTEN & set(ops):
            for call in run:
                self._add_run((call,))
            return
        if not is_whole:
            raise NotCovered(f"{' + '.join(ops)} has no native code")
        record = no_op()
        record.layer, record.profiled_as = self._layer, INDEX_OF[ops]
        self._builder(ops)(record, run)
        self.records.append(record)

    def _builder(self, ops: tuple[str, ...]) -> Callable[[OpRecord, tuple[Call, ...]], None]:
        if "linear" in ops:
            return self._linear
        if ops[0] in NORMS:
            return self._norm
        if "kv_write" in ops:
            return self._rope
        builders = {"embed": self._embed, "embed_positions": self._embed, "paged_attention": self._attention, "experts": self._experts}
        return builders.get(ops[0], self._elementwise)

    # ----------------------------------------------------------------------------------------------------------------------- records

    def _norm_of(self, record: OpRecord, call: Call) -> None:
        settings, width = _setting(call, NormSettings), self.symbols.width(call.inputs[0])
        record.norm, record.eps, record.has_unit_offset = NORMS[call.op], settings.eps, settings.has_unit_offset
        record.input = self.symbols.read(call.inputs[0])
        record.norm_weight = self.symbols.vector(call.parts[0], width)
        if len(call.parts) > 1:
            record.norm_bias = self.symbols.vector(call.parts[1], width)

    def _norm(self, record: OpRecord, run: tuple[Call, ...]) -> None:
        record.code = Code.NORM
        self._norm_of(record, run[0])
        width = self.symbols.width(run[0].inputs[0])
        if len(run) == 1:
            record.output = self.symbols.write(run[0].outputs[0], width)
        else:
            record.epilogue, record.output = Epilogue.ADD, self._sum(run[1], width)

    def _sum(self, call: Call, width: int) -> int:
        """The value that an `add` changes."""
        target = call.inputs[1]
        if call.outputs != (target,) or self.symbols.width(target) != width:
            raise NotCovered(f"add of {width} wide rows to {target}, into {call.outputs}")
        return self.symbols.read(target)

    def _linear(self, record: OpRecord, run: tuple[Call, ...]) -> None:
        at = next(idx for idx, call in enumerate(run) if call.op == "linear")
        call, columns = run[at], self.symbols.width(run[0].inputs[0])
        record.code, record.input = Code.LINEAR, self.symbols.read(run[0].inputs[0])
        if at:
            self._norm_of(record, run[0])
        record.weight = self.symbols.matrix(call.parts[0], columns)
        rows = record.weight.rows
        if len(call.parts) > 1:
            record.bias = self.symbols.vector(call.parts[1], rows)
        place = call.parts[0].removesuffix(".weight")
        record.place = PLACES.index(place) if self._layer >= 0 and place in PLACES else -1
        self._outputs_of(record, call, run[-1])
        if record.output == record.input:  # panels are written while others still read
            raise NotCovered(f"{call.op} writes what it reads, {run[0].inputs[0]}")

    def _outputs_of(self, record: OpRecord, call: Call, last: Call) -> None:
        """What becomes of what the linear `call` gives, in a record that ends with `last`."""
        rows = record.weight.rows
        if last is call:
            record.output = self.symbols.write(call.outputs[0], rows)
            return
        record.epilogue = EPILOGUES[last.op]
        if last.op == "add":
            record.output = self._sum(last, rows)
            return
        record.function = ACTIVATIONS[_setting(last, ActivationSettings).function]
        record.output = self.symbols.write(last.outputs[0], rows // 2 if last.op == "act_mul" else rows)

    def _embed(self, record: OpRecord, run: tuple[Call, ...]) -> None:
        (call,) = run
        _, part = self.symbols.part(call.parts[0])
        record.weight = self.symbols.matrix(call.parts[0], part.shape[-1])
        if call.outputs != ("residual",):
            raise NotCovered(f"{call.op} writes {call.outputs}")
        record.output = self.symbols.write("residual", part.shape[-1])
        record.code = Code.EMBED if call.op == "embed" else Code.EMBED_POSITIONS
        wanted = self._shape.vocab_size if call.op == "embed" else self._shape.max_positions
        if record.weight.rows < wanted:
            raise NotCovered(f"{call.parts[0]} has {record.weight.rows} rows of {wanted}")
        if call.op == "embed":
            record.scale = _setting(call, EmbedSettings).scale

    def _elementwise(self, record: OpRecord, run: tuple[Call, ...]) -> None:
        (call,) = run
        codes = {"add": Code.ADD, "act": Code.ACT, "act_mul": Code.ACT_MUL, "softcap": Code.SOFTCAP}
        width, record.code = self.symbols.width(call.inputs[0]), codes[call.op]
        record.input = self.symbols.read(call.inputs[0])
        if call.op == "add":
            record.output = self._sum(call, width)
        elif call.op == "softcap":
            if call.outputs != call.inputs:
                raise NotCovered("softcap is done in place")
            record.output, record.cap = record.input, _setting(call, SoftcapSettings).cap
        else:
            record.function = ACTIVATIONS[_setting(call, ActivationSettings).function]
            record.output = self.symbols.write(call.outputs[0], width // 2 if call.op == "act_mul" else width)

    def _rope(self, record: OpRecord, run: tuple[Call, ...]) -> None:
        shape, qkv = self._shape, run[0].inputs[0]
        if any(call.inputs[0] != qkv for call in run) or self.symbols.width(qkv) != shape.qkv_width:
            raise NotCovered(f"{qkv} is not queries, keys and values of {shape.qkv_width} numbers, normed and turned in place")
        record.code, record.input, record.output = Code.ROPE_KV_WRITE, self.symbols.read(qkv), self.symbols.read(qkv)
        for call in run:
            if call.op == "head_norm":
                self._head_norm(record, call)
            elif call.op == "rope":
                self._turn(record, _setting(call, RopeSettings))
        self._pages(record, _setting(run[-1], AttentionSettings))

    def _head_norm(self, record: OpRecord, call: Call) -> None:
        settings, shape = _setting(call, HeadNormSettings), self._shape
        record.head_eps, record.has_head_unit_offset = settings.eps, settings.has_unit_offset
        record.is_over_all_heads = settings.is_over_all_heads
        heads = (shape.num_heads, shape.num_kv_heads) if settings.is_over_all_heads else (1, 1)
        record.query_norm = self.symbols.vector(call.parts[0], heads[0] * shape.head_dim)
        record.key_norm = self.symbols.vector(call.parts[1], heads[1] * shape.head_dim)

    def _turn(self, record: OpRecord, settings: RopeSettings) -> None:
        tables = self._shape.rotary
        if settings.table >= len(tables) or 2 * len(tables[settings.table].inverse_frequencies) != settings.num_dims:
            raise NotCovered(f"there is no rotary table {settings.table} for {settings.num_dims} dimensions")
        if settings.num_dims > self._shape.head_dim:
            raise NotCovered(f"{settings.num_dims} dimensions of {self._shape.head_dim} are turned")
        record.table, record.num_dims = settings.table, settings.num_dims

    def _pages(self, record: OpRecord, settings: AttentionSettings) -> None:
        shape = self._shape
        if not 0 <= settings.group < len(shape.groups) or not 0 <= settings.layer < len(shape.layer_bytes):
            raise NotCovered(f"layer {settings.layer} of KV group {settings.group} has no pages")
        record.group, record.scale, record.cap = settings.group, settings.scale, settings.softcap
        if shape.layer_bytes[settings.layer] == ELSEWHERE:
            return
        record.layer_bytes = shape.layer_bytes[settings.layer]
        if not 0 <= record.layer_bytes <= shape.groups[settings.group].frame_bytes - layer_part_bytes(shape):
            raise NotCovered(f"layer {settings.layer} begins at {record.layer_bytes} and leaves its frame")

    def _attention(self, record: OpRecord, run: tuple[Call, ...]) -> None:
        (call,) = run
        if self.symbols.width(call.inputs[0]) != self._shape.qkv_width:
            raise NotCovered(f"attention reads {call.inputs[0]}, which is not queries, keys and values")
        record.code, record.input = Code.ATTENTION, self.symbols.read(call.inputs[0])
        record.output = self.symbols.write(call.outputs[0], self._shape.num_heads * self._shape.head_dim)
        self._pages(record, _setting(call, AttentionSettings))

    def _experts(self, record: OpRecord, run: tuple[Call, ...]) -> None:
        (call,) = run
        settings, width = _setting(call, ExpertSettings), self.symbols.width(call.inputs[0])
        router, gate_up, down = call.parts
        record.code, record.input = Code.EXPERTS, self.symbols.read(call.inputs[0])
        record.output = self.symbols.write(call.outputs[0], width)
        record.router = self.symbols.matrix(router, width)
        record.weight = self.symbols.matrix(gate_up, width, settings.num_experts)
        inner = record.weight.rows // 2
        record.down = self.symbols.matrix(down, inner, settings.num_experts)
        if inner % PANEL_ROWS or record.down.rows % PANEL_ROWS or record.down.rows != width or record.router.rows != settings.num_experts:
            raise NotCovered(f"experts of {inner} x {record.down.rows}, a router of {record.router.rows}, rows of {width}")
        if not 0 < settings.top_k <= settings.num_experts:
            raise NotCovered(f"{settings.top_k} of {settings.num_experts} experts")
        record.num_experts, record.top_k, record.is_normalized = settings.num_experts, settings.top_k, settings.is_normalized
        record.function = ACTIVATIONS[settings.function]


def layer_part_bytes(shape: ModelShape) -> int:
    """Keys and values of one layer in one page (`cpu/kernels.h`, Pages)."""
    slots = shape.page_tokens * shape.num_kv_heads
    scales = 8 * slots if BITS[shape.kv_kind] == 8 else 0
    return 2 * slots * shape.head_dim * BITS[shape.kv_kind] // 8 + scales


def _setting(call: Call, kind: type[Some]) -> Some:
    """The one setting of a call. Raises: NotCovered, if it has another or none."""
    found = [each for each in call.settings if isinstance(each, kind)]
    if len(found) != 1:
        raise NotCovered(f"{call.op} comes without its {kind.__name__}")
    return found[0]
