"""The native engine as Python sees it: threads, and models whose forward pass is one call.

    engine = Engine(num_threads=2)                       one in a process; it owns the threads
    model = NativeModel(engine, lower(...), arena)       one for each loaded model; no copy of anything
    hidden = model.forward(NativeStep.of(rows), bases)   the whole pass, without the interpreter's lock
    logits = model.logits(hidden, rows)                  of the tokens that are asked for

`bases` has the address of each segment of the model (the first, each layer, the last), so that a layer that is streamed is run from the
slot that it happens to be in: `first`, then `run_layers` for each stretch that is there.

Values of a step lie in one workspace of the engine that all its models share. It grows while a model is made (`workspace_bytes`) and not
in a step, unless a step is longer than what was announced.

Invariants
1. One pass runs at a time: a lock guards threads and workspace. The step thread of the worker is the one caller in daily use.
2. Nothing of a step reads or writes outside of the arena and the workspace: ops were checked when they were lowered, frames, tokens and
   positions are checked by the call itself before anything is computed. Raises: StepInvalid.
3. The bits of a token do not depend on what else is in the step, nor on the number of threads (kernels.h, rule 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from drivers.native.lowering import Program


class StepInvalid(Exception):
    """A step names a token, position or frame outside of its model or arena. A bug of the caller: plans are checked before."""


@dataclass(frozen=True, slots=True)
class ArenaSpan:
    """Where frames are: frame f of every group starts at `address + f * granule_bytes`."""

    address: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NativeLoraRows:
    """The tokens of a step that run with adapters, those of one adapter side by side."""

    tokens: np.ndarray  # [n] int64: where they are in the step
    counts: tuple[int, ...]  # of each adapter
    tables: tuple[bytes, ...]  # of each adapter: `adapter_table`, made once when it is loaded


@dataclass(frozen=True, slots=True)
class NativeStep:
    """One step of one model, as the engine reads it. Arrays are contiguous; the step keeps them alive."""

    tokens: np.ndarray  # [num_tokens] int64
    positions: np.ndarray  # [num_tokens] int64
    rows: np.ndarray  # [num_rows, 3 + groups] int32: first token, tokens, position, pages of each group's table
    frames: tuple[np.ndarray, ...]  # of each group: the tables of all rows one behind the other, int64
    lora: NativeLoraRows | None = None

    @classmethod
    def of(
        cls,
        tokens: np.ndarray,
        positions: np.ndarray,
        spans: tuple[Sequence[int], Sequence[int], Sequence[int]],
        tables: Sequence[Sequence[np.ndarray]],
    ) -> NativeStep:
        """`spans`: start, count and position of each row; `tables[group][row]`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Greedy:
    """The likeliest token of each row, the smallest of equals; `is_finite` is false where a logit is NaN or the greatest is infinite."""

    tokens: np.ndarray  # [n] int64
    is_finite: np.ndarray  # [n] bool


class Engine:
    """Threads and workspace."""

    def __init__(self, num_threads: int, cpus: Sequence[int] = ()) -> None:
        """`cpus`: where thread i may run, none: anywhere. Raises: BuildFailed, if there is no native code here."""
        raise NotImplementedError

    @property
    def workspace_bytes(self) -> int:
        """Memory that values of a step take, for the largest step announced."""
        raise NotImplementedError

    def profile(self) -> dict[str, tuple[int, int]]:
        """Calls and nanoseconds of each native op since profiling was switched on (`is_profiling`)."""
        raise NotImplementedError

    def close(self) -> None:
        """End the threads. No model may run afterwards. Safe to call twice."""
        raise NotImplementedError


class NativeModel:
    """A model's program on an engine."""

    def __init__(self, engine: Engine, program: Program, arena: ArenaSpan, max_tokens: int) -> None:
        """`max_tokens`: of the longest step; the workspace is taken for it now."""
        raise NotImplementedError

    def forward(self, step: NativeStep, bases: np.ndarray) -> Tensor:
        """Compute the tokens of a step and write their keys and values; answers the last residual `[T, hidden] f32`, the caller's own.

        `bases [segments] uint64`: the address of each segment. Raises: StepInvalid, and nothing was computed.
        """
        raise NotImplementedError

    def first(self, step: NativeStep, bases: np.ndarray) -> Tensor:
        """The residual before the first layer."""
        raise NotImplementedError

    def run_layers(self, step: NativeStep, residual: Tensor, layers: tuple[int, int], bases: np.ndarray) -> None:
        """Run layers [first, end) on the residual, in place; `bases` of other layers are not read."""
        raise NotImplementedError

    def logits(self, hidden: Tensor, rows: Sequence[int] | np.ndarray, bases: np.ndarray) -> Tensor:
        """Logits `[n, vocab] f32` of those rows of what `forward` gave."""
        raise NotImplementedError

    def greedy(self, hidden: Tensor, rows: Sequence[int] | np.ndarray, bases: np.ndarray) -> Greedy:
        """The likeliest tokens, without the logits."""
        raise NotImplementedError
