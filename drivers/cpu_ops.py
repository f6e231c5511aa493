"""Which implementations a model runs on the CPU, and the check that they may.

A model's calls are covered (`drivers.ops.fusion`), then every implementation that is not a definition is compared with the definition of
what it stands for, in each shape that the model has; one that disagrees is quarantined for as long as the process lives, said once in the
log, and the calls are covered again without it. What was compared once is not compared again, whatever model asks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import torch

from drivers.models.description import describe
from drivers.models.loader import ModelFiles
from drivers.ops.check import TOLERANCES, Case, cases, error_of, quarantined
from drivers.ops.check_table import disagreements
from drivers.ops.fusion import Cover, fuse
from drivers.ops.implementation import REFERENCE, TORCH, Implementation, Shapes
from drivers.ops.ragged import HeadShape
from drivers.ops.table import OpTable, fused_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelOps:
    """What runs one model."""

    cover: Cover
    table: OpTable


@dataclass(slots=True)
class OpChooser:
    """Chooses for one driver."""

    implementations: tuple[Implementation, ...] = (*TORCH, *REFERENCE)
    disagreeing: frozenset[str] = frozenset()  # implementations that are taken to disagree, for tests
    table: OpTable = field(default_factory=fused_table)
    errors: dict[Case, float] = field(default_factory=dict)  # of everything compared so far
    bad: dict[str, float] = field(default_factory=dict)  # implementations in quarantine, with their largest error
    _tables: dict[object, OpTable] = field(default_factory=dict)

    def choose(self, files: ModelFiles, page_tokens: int, dtype: torch.dtype) -> ModelOps:
        """Cover a model's calls with what agrees."""
        shapes = shapes_of(files, page_tokens, dtype)
        description, windows = describe(files.config), [group.window for group in files.config.groups]
        while True:
            offered = quarantined(self.implementations, self.bad)
            cover = fuse(description, offered, lambda idx: shapes[idx])
            if not self._compare(cases(cover, shapes, windows, dtype), shapes[0]):
                return ModelOps(cover, self._checked_table(files, dtype))

    def _compare(self, wanted: dict[Case, Implementation], shape: Shapes) -> bool:
        """Compare what was not compared before. Answers whether something new disagreed."""
        found = False
        for case, implementation in wanted.items():
            if case not in self.errors:
                wrong = implementation.name in self.disagreeing
                self.errors[case] = error = float("inf") if wrong else error_of(case, implementation, shape)
                if not error <= TOLERANCES[case.dtype]:
                    found = True
                    self._quarantine(implementation.name, error)
        return found

    def _quarantine(self, name: str, error: float) -> None:
        if name not in self.bad:
            logger.error("An op disagrees with its definition and is not used.", extra={"op": name, "error": error})
            self.bad[name] = error

    def _checked_table(self, files: ModelFiles, dtype: torch.dtype) -> OpTable:
        key = (linears := linears_of(files), files.config.vocab_size, dtype)
        if key not in self._tables:
            table, plain = self.table, OpTable()
            for name, error in disagreements(table, linears, files.config.vocab_size, dtype).items():
                self._quarantine(f"torch.{name}", error)
                table = replace(table, **{name: getattr(plain, name)})
            self._tables[key] = table
        return self._tables[key]


def shapes_of(files: ModelFiles, page_tokens: int, dtype: torch.dtype) -> list[Shapes]:
    """What implementations may ask about each segment's calls. A tied head is a part of the first segment."""
    config = files.config
    heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
    first = {part.name: part.shape for part in files.segments[0].parts}
    return [
        Shapes(heads, page_tokens, config.hidden_size, str(dtype), {**first, **{part.name: part.shape for part in segment.parts}})
        for segment in files.segments
    ]


def linears_of(files: ModelFiles) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the linears that adapters may change."""
    names = ("qkv.weight", "output.weight", "gate_up.weight", "down.weight")
    shapes = {part.shape for segment in files.segments[1:-1] for part in segment.parts if part.name in names}
    return tuple(sorted((shape[0], shape[1]) for shape in shapes))
