"""What runs a model on the CPU: native code or torch, which implementation of each call, and the check that it may.

A model's calls are covered (`drivers.ops.fusion`), then everything that is not a definition is compared with the definition of what it
stands for, in each shape that the model has. What disagrees is quarantined for as long as the process lives, said once in the log, and the
calls are covered again without it. What was compared once is not compared again, whatever model asks.

A model runs natively as a whole or not at all: only then is a forward pass one call, and its weights and pages lie in lanes. So this is
decided before anything is placed, when a model is inspected; a load decides the same, out of what was found then.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeVar

import torch

from drivers.contract import InspectSpec
from drivers.cpu_options import CpuOptions
from drivers.cpu_shapes import Held, linears_of, native_shape, shapes_of, whole
from drivers.errors import ModelUnsupported
from drivers.models.checkpoint import Checkpoint, read_checkpoint
from drivers.models.description import describe
from drivers.models.layout import why_no_panels
from drivers.models.loader import ModelFiles, PageShape, arrange
from drivers.models.runtime import Runtime
from drivers.native import draw_check, little
from drivers.native.build import BuildFailed, cpu_recipe
from drivers.native.check import NativeCase, native_cases
from drivers.native.draw_check import DrawCase
from drivers.native.engine import Engine
from drivers.native.isa import GENERIC
from drivers.native.lowering import lower
from drivers.native.offers import NATIVE
from drivers.native.program import NotCovered, Program
from drivers.native.sampling import MOST_TOKENS
from drivers.ops.check import TOLERANCES, Case, cases, error_of, quarantined
from drivers.ops.check_table import disagreements
from drivers.ops.fusion import Cover, fuse
from drivers.ops.implementation import REFERENCE, TORCH, Implementation
from drivers.ops.table import OpTable, fused_table

logger = logging.getLogger(__name__)

C = TypeVar("C", Case, NativeCase, DrawCase)
NATIVE_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Decision:
    """What runs one model."""

    source: InspectSpec
    files: ModelFiles
    cover: Cover
    table: OpTable
    program: Program | None  # None: torch
    why_torch: str = ""
    draws: bool = False  # native code goes on from logits to tokens


def open_engine(options: CpuOptions, num_threads: int) -> tuple[Engine | None, str]:
    """The engine, or why there is none."""
    if not options.is_native:
        return None, "the driver's option native is off"
    try:
        return Engine(num_threads, options.cpus[:num_threads], options.isa), ""
    except BuildFailed as reason:
        return None, str(reason)


@cache
def sources_hash() -> str:
    """Of all native code of this driver."""
    recipe, made_of = cpu_recipe(GENERIC), hashlib.sha256()
    for path in (*recipe.sources, *recipe.headers):
        made_of.update(path.name.encode() + b"\0" + path.read_bytes())
    return made_of.hexdigest()[:12]


@dataclass(slots=True)
class OpChooser:
    """Decides for one driver."""

    pages: PageShape
    engine: Engine | None = None
    why_no_engine: str = "no engine was opened"
    offers: tuple[Implementation, ...] = (*TORCH, *REFERENCE)  # where it is not native
    disagreeing: frozenset[str] = frozenset()  # implementations that are taken to disagree, for tests
    table: OpTable = field(default_factory=fused_table)
    bad: dict[str, float] = field(default_factory=dict)  # implementations in quarantine, with their largest error
    num_compared: int = 0
    _errors: dict[Case | NativeCase | DrawCase, float] = field(default_factory=dict)  # of everything compared so far
    _tables: dict[object, OpTable] = field(default_factory=dict)

    @property
    def engine_name(self) -> str:
        """What of native code changes the bits of a page."""
        return f"native-{self.engine.level}-{sources_hash()}" if self.engine is not None else ""

    def decide(self, source: InspectSpec) -> Decision:
        """Say what runs a model. Raises: ModelUnsupported, ModelCorrupt."""
        checkpoint = read_checkpoint(source)
        runtime = Runtime(self.pages.dtype, is_native=True, quant=source.quant, kv_quant=source.kv_quant)
        why = self._why_not_native(checkpoint)
        if not why:
            files = arrange(checkpoint, runtime)
            try:
                cover, program = self._natively(files)
                table = self._checked_table(files, torch.float32)
                return Decision(source, files, cover, table, program, draws=self._draws(files.config.vocab_size))
            except NotCovered as reason:
                why = str(reason)
        if source.kv_quant:
            raise ModelUnsupported(f"kv_quant is {source.kv_quant!r}, which needs native code, and there is none for this model: {why}.")
        files = arrange(checkpoint, replace(runtime, is_native=False))
        return Decision(source, files, self._in_torch(files), self._checked_table(files, self.pages.dtype), None, why)

    def program_of(self, decision: Decision, held: Held) -> Program | None:
        """What native code runs of a model of which so much is here; None: torch runs it."""
        if decision.program is None:
            return None
        return lower(decision.cover.description, decision.files.segments, native_shape(decision.files, self.pages, held))

    def _why_not_native(self, checkpoint: Checkpoint) -> str:
        if checkpoint.config.foreign is not None:
            return "its modules in transformers compute it"
        if self.engine is None:
            return self.why_no_engine
        if self.pages.dtype not in NATIVE_DTYPES:
            return f"there is no native code for {str(self.pages.dtype).removeprefix('torch.')}"
        return why_no_panels(checkpoint.config)

    # ----------------------------------------------------------------------------------------------------------------------- covers

    def _natively(self, files: ModelFiles) -> tuple[Cover, Program]:
        """Cover a model with native ops alone. Raises: NotCovered."""
        assert self.engine is not None
        shape = native_shape(files, self.pages, whole(files, self.pages))
        while True:
            cover = self._covered(files, NATIVE)
            if cover.gaps:
                raise NotCovered("; ".join(cover.gaps))
            program = lower(cover.description, files.segments, shape)
            wanted = {case: case.names for case in native_cases(cover, files.segments, shape)}
            if not self._compare(wanted, self._native_error):
                return cover, program

    def _draws(self, vocab_size: int) -> bool:
        """Whether native code draws tokens of such logits: as the definition does."""
        engine = self.engine
        assert engine is not None
        case = draw_check.draw_case(vocab_size)
        self._compare({case: (draw_check.NAME,)}, lambda case: draw_check.error_of(case, engine))
        return vocab_size <= MOST_TOKENS and draw_check.NAME not in self.bad

    def _native_error(self, case: NativeCase) -> float:
        assert self.engine is not None
        return little.error_of(case, self.engine) / case.tolerance

    def _in_torch(self, files: ModelFiles) -> Cover:
        """Cover a model with torch and definitions."""
        shapes, windows = shapes_of(files, self.pages), [group.window for group in files.config.groups]
        while True:
            cover = self._covered(files, self.offers)
            wanted = {case: (case.implementation.name,) for case in cases(cover, shapes, windows, self.pages.dtype)}
            if not self._compare(wanted, lambda case: error_of(case, shapes[0]) / TOLERANCES[case.dtype]):
                return cover

    def _covered(self, files: ModelFiles, offers: Sequence[Implementation]) -> Cover:
        shapes = shapes_of(files, self.pages)
        return fuse(describe(files.config), quarantined(offers, self.bad), lambda idx: shapes[idx])

    # -------------------------------------------------------------------------------------------------------------------- comparison

    def _compare(self, wanted: Mapping[C, tuple[str, ...]], error: Callable[[C], float]) -> bool:
        """Compare what was not compared before; errors are in tolerances. Answers whether something new disagreed."""
        is_found = False
        for case, names in wanted.items():
            if case in self._errors:
                continue
            wrong = self.disagreeing.intersection(names)
            self.num_compared += 1
            self._errors[case] = found = math.inf if wrong else error(case)
            if not found <= 1.0:
                is_found = True
                self._quarantine(wrong or set(names), found)
        return is_found

    def _quarantine(self, names: Iterable[str], error: float) -> None:
        for name in names:
            if name not in self.bad:
                logger.error("An op disagrees with its definition and is not used.", extra={"op": name, "error_in_tolerances": error})
                self.bad[name] = error

    def _checked_table(self, files: ModelFiles, dtype: torch.dtype) -> OpTable:
        """What draws, and what adds adapters in torch."""
        key = (linears := linears_of(files), files.config.vocab_size, dtype)
        if key not in self._tables:
            table, plain = self.table, OpTable()
            for name, error in disagreements(table, linears, files.config.vocab_size, dtype).items():
                self._quarantine([f"torch.{name}"], error / TOLERANCES[dtype])
                table = replace(table, **{name: getattr(plain, name)})
            self._tables[key] = table
        return self._tables[key]
