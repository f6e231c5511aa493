"""Which parts a model has, and which stored tensors fill them; how a part lies in the arena is `drivers.models.layout`'s.

Rows of a part are all of its dimensions but the last, one behind the other: experts `[E, N, K]` are E * N rows of K columns. A vector's
rows are its values.

    part qkv.weight  | q rows | k rows | v rows |        three stored tensors, or three ranges of rows of one
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Arrangement(Enum):
    """How a stored tensor is turned on its way into place."""

    PLAIN = "plain"
    QUERY_ROWS = "query rows"  # [kv_heads, queries, head_dim, ...] -> [queries, kv_heads, head_dim, ...]
    OUTPUT_COLUMNS = "output columns"  # [hidden, kv_heads, queries, head_dim] -> [hidden, queries, kv_heads, head_dim]
    TRANSPOSED = "transposed"  # [columns, rows], as GPT-2 stores its linears; always whole


@dataclass(frozen=True, slots=True)
class Source:
    """A stored tensor of `shape` that fills rows of a part from `row` on: all of its rows, or the half-open range `taken`."""

    tensor: str
    shape: tuple[int, ...]
    row: int = 0
    arrangement: Arrangement = Arrangement.PLAIN
    taken: tuple[int, int] | None = None

    @property
    def stored_rows(self) -> tuple[int, int]:
        """The rows that are taken of the stored tensor, half-open."""
        return self.taken or (0, rows_of(self.shape))

    @property
    def num_rows(self) -> int:
        """How many rows of the part it fills."""
        if self.arrangement is Arrangement.TRANSPOSED:
            return self.shape[1]
        first, end = self.stored_rows
        return end - first


@dataclass(frozen=True, slots=True)
class PartSpec:
    """One part of a segment, by name; its sources fill all of its rows."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]


def rows_of(shape: tuple[int, ...]) -> int:
    """How many rows a tensor has: a vector's values, a matrix's rows, all rows of all matrices where there are three dimensions."""
    return shape[0] if len(shape) == 1 else math.prod(shape[:-1])
