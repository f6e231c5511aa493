"""One step of one model, as the native engine reads it: a few arrays, made with few operations of Python.

    rows      | start, count, position, pages in group 0, pages in group 1, ... |   one line for each row
    frames    | table of row 0 | table of row 1 | ...                               one array for each KV group

Tables are copied one behind the other, which is one call for all rows, where asking each array for its address is one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_void_p
from dataclasses import dataclass

import numpy as np

from drivers.models.adapter import AdapterWeights, LoraBatch
from drivers.native.lora import NOTHING
from drivers.native.program import PLACES
from drivers.native.records import StepRecord


@dataclass(frozen=True, slots=True)
class NativeLora:
    """The tokens of a step that run with adapters, those of one adapter side by side, and what each adapter changes."""

    tokens: np.ndarray  # [n] int64: where they are in the step
    counts: np.ndarray  # [adapters] int64
    tables: tuple[np.ndarray, ...]  # of each adapter: `adapter_table`, made once when it is loaded
    is_bf16: bool

    @classmethod
    def of(cls, batch: LoraBatch, tables: Sequence[np.ndarray], *, is_bf16: bool) -> NativeLora:
        """The same step's adapters, as the torch path has them, with a table for each."""
        return cls(batch.rows.tokens.numpy(), np.array(batch.rows.counts, dtype=np.int64), tuple(tables), is_bf16)


def adapter_table(weights: AdapterWeights) -> np.ndarray:
    """Where an adapter's pairs are, `[layers * 4 records] uint8`. Its views have to live as long."""
    records = [pair.record if (pair := layer.get(place)) is not None else NOTHING for layer in weights.pairs for place in PLACES]
    return np.frombuffer(b"".join(records), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class NativeStep:
    """Arrays are contiguous; the step keeps them alive."""

    tokens: np.ndarray  # [num_tokens] int64
    rows: np.ndarray  # [num_rows, 3 + groups] int32: first token, tokens, position, pages of each group's table
    frames: tuple[np.ndarray, ...]  # of each group: the tables of all rows one behind the other, int64
    lora: NativeLora | None = None

    @classmethod
    def of(
        cls,
        tokens: np.ndarray,
        spans: tuple[Sequence[int], Sequence[int], Sequence[int]],
        tables: Sequence[Sequence[np.ndarray]],
        lora: NativeLora | None = None,
    ) -> NativeStep:
        """`spans`: start, count and position of each row; `tables[group][row]` int64."""
        rows = np.array([*spans, *([len(table) for table in group] for group in tables)], dtype=np.int32)
        frames = tuple(np.concatenate(group) for group in tables)
        return cls(np.ascontiguousarray(tokens, dtype=np.int64), np.ascontiguousarray(rows.T), frames, lora)

    def record(self) -> StepRecord:
        """For the library; good as long as the step is."""
        frames = (c_void_p * len(self.frames))(*(table.ctypes.data for table in self.frames))
        record = StepRecord(len(self.tokens), len(self.rows), self.tokens.ctypes.data, self.rows.ctypes.data, frames)
        if self.lora is not None:
            tables = (c_void_p * len(self.lora.tables))(*(table.ctypes.data for table in self.lora.tables))
            record.num_lora_tokens, record.num_adapters = len(self.lora.tokens), len(self.lora.counts)
            record.lora_tokens, record.lora_counts = self.lora.tokens.ctypes.data, self.lora.counts.ctypes.data
            record.lora_tables, record.is_lora_bf16 = tables, self.lora.is_bf16
        return record
