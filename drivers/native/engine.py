"""The native engine as Python sees it: threads, and models whose forward pass is one call.

    engine = Engine(num_threads=2)                       one in a process; it owns the threads
    model = NativeModel(engine, lower(...), arena, 512)  one for each loaded model; no copy of anything
    hidden = model.forward(NativeStep.of(...), bases)    the whole pass, without the interpreter's lock
    logits = model.logits(hidden, rows, bases)           of the tokens that are asked for

`bases` has the address of each segment of the model (the first, each layer, the last), so that a layer that is streamed is run from the
slot that it happens to be in: `first`, then `run_layers` for each stretch that is there.

Values of a step lie in one workspace of the engine that all its models share. It grows while a model is made (`workspace_bytes`) and not
in a step, unless a step is longer than what was announced, or has adapters.

Invariants
1. One pass runs at a time: a lock guards threads and workspace. The step thread of the worker is the one caller in daily use.
2. Nothing of a step reads or writes outside of the arena and the workspace: ops were checked when they were lowered; rows, frames and
   tokens are checked by the call itself before anything is computed (StepInvalid). What a base points to is the caller's word.
3. The bits of a token do not depend on what else is in the step, nor on the number of threads (kernels.h, rule 1).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drivers.native import lora
from drivers.native.build import BuildFailed, cpu_library
from drivers.native.program import NATIVE_OPS, PLACES, Program
from drivers.native.records import (
    KINDS,
    MAX_PROFILED,
    SIZES,
    ArenaRecord,
    GroupRecord,
    OpRecord,
    RowsRecord,
    ShapeRecord,
    StepRecord,
    TimesRecord,
)
from drivers.native.step import NativeStep

NO_MEMORY = 5
OUTCOMES = {
    1: "a token is not in the vocabulary",
    2: "a row goes beyond the model's positions",
    3: "rows are not side by side, or a row has fewer pages than it needs",
    4: "a frame is outside of the arena",
    6: "the tokens of adapters are not those of the step",
}


class StepInvalid(Exception):
    """A step names a token, position or frame outside of its model or arena. A bug of the caller: plans are checked before."""


@dataclass(frozen=True, slots=True)
class ArenaSpan:
    """Where frames are: frame f of every group starts at `address + f * granule_bytes`."""

    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OpTimes:
    """What an op took: calls, nanoseconds on the clock, and nanoseconds of all threads inside of its parts."""

    calls: int
    wall_ns: int
    busy_ns: int


class Engine:
    """Threads and workspace."""

    def __init__(self, num_threads: int, cpus: Sequence[int] = (), level: str = "") -> None:
        """`cpus`: where thread i may run, none: anywhere; thread 0 is whoever calls, and is not moved. `level`: of instructions, other than
        the best.

        Raises: BuildFailed, if there is no native code here.
        """
        native = cpu_library(level)
        if native.library is None:
            raise BuildFailed(native.why)
        if cpus and len(cpus) < num_threads:
            raise ValueError(f"{num_threads} threads on {len(cpus)} processors")
        self.level = native.level
        self.lock = threading.Lock()  # invariant 1
        self.library = _declared(native.library)
        self._handle: int | None = self.library.kd_engine_open(max(1, num_threads), (c_int32 * len(cpus))(*cpus) if cpus else None)

    @property
    def handle(self) -> int:
        """For the library. Raises: ValueError, if it was closed."""
        if self._handle is None:
            raise ValueError("The engine is closed.")
        return self._handle

    @property
    def num_threads(self) -> int:
        """Threads, the caller's own among them; fewer than were asked for where the system has no more."""
        return int(self.library.kd_engine_threads(self.handle))

    @property
    def workspace_bytes(self) -> int:
        """Memory that values of a step take, for the largest step announced or seen."""
        return int(self.library.kd_engine_bytes(self.handle))

    def profile(self, *, is_on: bool) -> dict[str, OpTimes]:
        """Begin to take times anew, or stop; answers those of each op that ran since the last time they began to be taken."""
        times = (TimesRecord * MAX_PROFILED)()
        with self.lock:
            self.library.kd_engine_profile(self.handle, is_on, times)
        named = zip(NATIVE_OPS, times, strict=False)
        return {op.name: OpTimes(one.calls, one.wall_ns, one.busy_ns) for op, one in named if one.calls}

    def draw(self, rows: RowsRecord, num_rows: int) -> None:
        """What is drawn of logits that are there. Raises: StepInvalid; MemoryError."""
        with self.lock:
            outcome = self.library.kd_draw(self.handle, byref(rows), num_rows)
        check_outcome(outcome)

    def close(self) -> None:
        """End the threads. No model may run afterwards. Safe to call twice."""
        with self.lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self.library.kd_engine_close(handle)


class NativeModel:
    """A model's program on an engine."""

    def __init__(self, engine: Engine, program: Program, arena: ArenaSpan, max_tokens: int) -> None:
        """`max_tokens`: of the longest step; the workspace is taken for it now. Raises: MemoryError."""
        self.program = program
        self._engine = engine
        self._arena = ArenaRecord(arena.address, arena.size_bytes)
        self._library = engine.library
        self._table_bytes = (len(program.layers) - 1) * len(PLACES) * lora.RECORD_BYTES
        self._program: int | None = _open_program(engine.library, program)
        with engine.lock:
            outcome = self._library.kd_reserve(engine.handle, self._program, max_tokens)
        if outcome:
            self.close()
        check_outcome(outcome)

    def close(self) -> None:
        """Forget the program. Safe to call twice."""
        with self._engine.lock:
            program, self._program = self._program, None
            if program is not None:
                self._library.kd_program_close(program)

    def forward(self, step: NativeStep, bases: np.ndarray) -> Tensor:
        """Compute the tokens of a step and write their keys and values; answers the last residual `[T, hidden] f32`, the caller's own.

        `bases [segments] uint64`: the address of each segment. Raises: StepInvalid, and nothing was computed.
        """
        residual = torch.empty((len(step.tokens), self.program.hidden_size), dtype=torch.float32)
        self._run(step, residual, (0, self.program.layers[-1]), bases)
        return residual

    def first(self, step: NativeStep, bases: np.ndarray) -> Tensor:
        """The residual before the first layer. Raises: StepInvalid."""
        residual = torch.empty((len(step.tokens), self.program.hidden_size), dtype=torch.float32)
        self._run(step, residual, (0, self.program.layers[0]), bases)
        return residual

    def run_layers(self, step: NativeStep, residual: Tensor, layers: tuple[int, int], bases: np.ndarray) -> None:
        """Run layers [first, end) on the residual, in place; `bases` of other layers are not read. Raises: StepInvalid."""
        if residual.shape != (len(step.tokens), self.program.hidden_size) or not residual.is_contiguous():
            raise ValueError(f"The residual of {len(step.tokens)} tokens is {tuple(residual.shape)}.")
        first, end = layers
        self._run(step, residual, (self.program.layers[first], self.program.layers[end]), bases)

    def logits(self, hidden: Tensor, rows: Sequence[int] | np.ndarray, bases: np.ndarray) -> Tensor:
        """Logits `[n, vocab] f32` of those rows of what `forward` gave; the caller's own."""
        logits = torch.empty((len(rows), self.program.widths[self.program.logits]), dtype=torch.float32)
        self._head(hidden, rows, bases, (logits.data_ptr(), None))
        return logits

    def greedy(self, hidden: Tensor, rows: Sequence[int] | np.ndarray, bases: np.ndarray) -> np.ndarray:
        """The likeliest token of each row `[n] int64`, the smallest of equals, without the logits; -1 where one of them is NaN or the
        greatest is infinite."""
        likeliest = np.empty(len(rows), dtype=np.int64)
        self._head(hidden, rows, bases, (None, likeliest.ctypes.data))
        return likeliest

    def draw(self, hidden: Tensor, places: Sequence[int], bases: np.ndarray, rows: RowsRecord, most_rows: int) -> None:
        """What is drawn for those rows of what `forward` gave, from the head to tokens (`drivers.native.sampling`); logits of no more than
        `most_rows` are in memory at a time. Raises: StepInvalid; MemoryError."""
        chosen = self._chosen(hidden, places)
        where = (hidden.data_ptr(), chosen.ctypes.data, len(chosen), bases.ctypes.data, self.program.layers[-1])
        with self._engine.lock:
            self._check_bases(bases)
            outcome = self._library.kd_head_draw(self._engine.handle, self._program, *where, byref(rows), most_rows)
        check_outcome(outcome)

    def _run(self, step: NativeStep, residual: Tensor, ops: tuple[int, int], bases: np.ndarray) -> None:
        if len(step.frames) != len(self.program.shape.groups):
            raise ValueError(f"A model of {len(self.program.shape.groups)} KV groups is given tables of {len(step.frames)}.")
        if step.lora is not None and any(table.nbytes != self._table_bytes for table in step.lora.tables):
            raise ValueError(f"An adapter's table has {self._table_bytes} bytes in this model.")
        with self._engine.lock:
            self._check_bases(bases)
            outcome = self._library.kd_run(
                self._engine.handle, self._program, byref(step.record()), bases.ctypes.data, byref(self._arena), *ops, residual.data_ptr()
            )
        check_outcome(outcome)

    def _head(self, hidden: Tensor, rows: Sequence[int] | np.ndarray, bases: np.ndarray, out: tuple[int | None, int | None]) -> None:
        chosen = self._chosen(hidden, rows)
        where = (hidden.data_ptr(), chosen.ctypes.data, len(chosen), bases.ctypes.data, self.program.layers[-1])
        with self._engine.lock:
            self._check_bases(bases)
            outcome = self._library.kd_logits(self._engine.handle, self._program, *where, *out)
        check_outcome(outcome)

    def _chosen(self, hidden: Tensor, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        chosen = np.ascontiguousarray(rows, dtype=np.int64)
        if hidden.shape[1:] != (self.program.hidden_size,) or hidden.dtype is not torch.float32 or not hidden.is_contiguous():
            raise ValueError(f"Hidden states are {tuple(hidden.shape)} {hidden.dtype}.")
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < hidden.shape[0]:
            raise StepInvalid(f"Logits of rows {chosen.min()} to {chosen.max()} of {hidden.shape[0]}.")
        return chosen

    def _check_bases(self, bases: np.ndarray) -> None:
        if self._program is None:
            raise ValueError("The model is closed.")
        if bases.shape != (self.program.num_segments,) or bases.dtype != np.uint64:
            raise ValueError(f"A model of {self.program.num_segments} segments is given {bases.shape} addresses of {bases.dtype}.")


def check_outcome(outcome: int) -> None:
    """Raises: MemoryError; StepInvalid, if the library says so."""
    if outcome == NO_MEMORY:
        raise MemoryError("There is no memory for the values of a step this long.")
    if outcome:
        raise StepInvalid(f"The step cannot be run: {OUTCOMES[outcome]}.")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the library's functions their types. Raises: BuildFailed, if its records are not ours."""
    sizes = (c_int32 * len(SIZES))()
    library.kd_record_sizes(sizes)
    if list(sizes) != SIZES:
        raise BuildFailed(f"The native engine has records of {list(sizes)} bytes; Python has {SIZES}.")
    pointer = c_void_p
    types: dict[str, tuple[object, list[object]]] = {
        "kd_engine_open": (pointer, [c_int, pointer]),
        "kd_engine_close": (None, [pointer]),
        "kd_engine_threads": (c_int, [pointer]),
        "kd_engine_bytes": (c_int64, [pointer]),
        "kd_engine_profile": (None, [pointer, c_int, pointer]),
        "kd_program_open": (pointer, [pointer, pointer, c_int, pointer, c_int, c_int, pointer, pointer, pointer, pointer]),
        "kd_program_close": (None, [pointer]),
        "kd_reserve": (c_int, [pointer, pointer, c_int64]),
        "kd_run": (c_int, [pointer, pointer, POINTER(StepRecord), pointer, POINTER(ArenaRecord), c_int, c_int, pointer]),
        "kd_logits": (c_int, [pointer, pointer, pointer, pointer, c_int64, pointer, c_int, pointer, pointer]),
        "kd_draw": (c_int, [pointer, POINTER(RowsRecord), c_int64]),
        "kd_head_draw": (c_int, [pointer, pointer, pointer, pointer, c_int64, pointer, c_int, POINTER(RowsRecord), c_int64]),
    }
    for name, (answer, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = answer, arguments
    return library


def _open_program(library: ctypes.CDLL, program: Program) -> int:
    shape = program.shape
    record = ShapeRecord(
        *(shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.page_tokens, shape.vocab_size, shape.max_positions),
        *(len(shape.groups), len(shape.rotary), KINDS[shape.kv_kind], 0, shape.granule_bytes),
    )
    groups = (GroupRecord * len(shape.groups))(*(GroupRecord(group.frame_bytes, group.window or 0, 0) for group in shape.groups))
    tables = [np.ascontiguousarray(table.inverse_frequencies, dtype=np.float32) for table in shape.rotary]
    frequencies = np.concatenate(tables) if tables else np.empty(0, dtype=np.float32)
    pairs = np.array([len(table) for table in tables], dtype=np.int32)
    factors = np.array([table.factor for table in shape.rotary], dtype=np.float32)
    opened: Callable[..., int] = library.kd_program_open
    return opened(
        byref(record),
        (OpRecord * len(program.ops))(*program.ops),
        len(program.ops),
        (c_int32 * len(program.widths))(*program.widths),
        len(program.widths),
        program.logits,
        groups,
        *(array.ctypes.data for array in (frequencies, pairs, factors)),
    )
