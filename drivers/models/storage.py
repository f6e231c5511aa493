"""How a matrix of weights lies in the arena: as numbers of some kind, with scales for those that are quantized.

    w[n, k] = scale[n, k // group] * q[n, k] - offset[n, k // group]          q unsigned, of 8 or 4 bits

Symmetric kinds have no offsets: theirs is `scale * 2^(bits - 1)`. Everything that checkpoints hold as integers comes to this (int8 by row,
Q8_0, Q4_0, Q4_1, GPTQ, AWQ, compressed-tensors) without loss; what does not is turned into floats on its way in.

    values | scales | offsets          one behind the other, each from a multiple of 64 bytes on

The plain order is row by row; int4 has two columns in a byte, the even one in the lower half. **Panels** are the order of native code:
sixteen rows side by side, so that one vector register holds one column, or a few, of all sixteen. With R rows padded to a multiple of 16
by rows of zeros (scales 0), N = R / 16:

    float32   [N][columns][16]
    bfloat16  [N][columns / 2][16][2]                       columns padded to a multiple of 2
    int8      [N][columns / 4][16][4]                       columns padded to a multiple of 4
    int4      [N][columns / 8][16][4]  bytes: byte j of a row's four holds column 8 c + j in its lower half and 8 c + 4 + j in its upper one
    scales    [N][groups][16], offsets alike

Scales are float32 where there is one for a row, and float16 where there are groups; offsets are float32, because a scale times a zero
point does not fit into a float16. Groups are of `GROUP_UNIT` columns or a multiple of it, and divide the columns. A part of three
dimensions is that many matrices: the values of all, then the scales of all, then the offsets of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

ALIGN_BYTES = 64
PANEL_ROWS = 16
GROUP_UNIT = 32
OFFSET_BYTES = 4


class Kind(Enum):
    """What numbers the values are."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"
    FLOAT8 = "float8"  # OCP's e4m3; of pages alone


BITS = {Kind.FLOAT32: 32, Kind.BFLOAT16: 16, Kind.FLOAT16: 16, Kind.INT8: 8, Kind.INT4: 4, Kind.FLOAT8: 8}
COLUMNS_AT_ONCE = {Kind.FLOAT32: 1, Kind.BFLOAT16: 2, Kind.INT8: 4, Kind.INT4: 8}  # in panels


@dataclass(frozen=True, slots=True)
class Storage:
    """The form of one matrix, or of a vector (never quantized, never in panels)."""

    kind: Kind
    group: int = 0  # columns that share a scale; 0: all of a row (integers), or no scales at all (floats)
    has_offsets: bool = False
    is_panels: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether there are scales."""
        return self.kind in (Kind.INT8, Kind.INT4)

    @property
    def scale_bytes(self) -> int:
        """Of one scale."""
        return 2 if self.group else 4

    @property
    def name(self) -> str:
        """As a listing shows it: `int4 in groups of 32 with offsets`."""
        grouped = f" in groups of {self.group}" if self.group else ""
        return f"{self.kind.value}{grouped}{' with offsets' if self.has_offsets else ''}"

    def num_groups(self, columns: int) -> int:
        """Scales of one row."""
        return columns // self.group if self.group else 1

    def padded_rows(self, rows: int) -> int:
        """Rows that the values of a matrix take."""
        return -(-rows // PANEL_ROWS) * PANEL_ROWS if self.is_panels else rows

    def padded_columns(self, columns: int) -> int:
        """Columns that the values of a matrix take."""
        at_once = COLUMNS_AT_ONCE[self.kind] if self.is_panels else 2 if self.kind is Kind.INT4 else 1
        return -(-columns // at_once) * at_once


@dataclass(frozen=True, slots=True)
class Places:
    """Where a part's values, scales and offsets lie, in bytes from its start. `x_bytes` are of one matrix of those that it has."""

    storage: Storage
    num_matrices: int
    rows: int  # padded
    columns: int  # padded
    groups: int
    values_bytes: int
    scales_start: int
    scales_bytes: int
    offsets_start: int
    offsets_bytes: int
    size_bytes: int  # up to the end of what is used; the next part begins at a multiple of ALIGN_BYTES


@lru_cache(4096)  # layers have the same few shapes, and are asked again and again
def places_of(storage: Storage, shape: tuple[int, ...]) -> Places:
    """Where everything lies in a part of that form and shape `[columns]`, `[rows, columns]` or `[matrices, rows, columns]`."""
    num_matrices, rows, columns = math.prod(shape[:-2]), shape[-2] if len(shape) > 1 else 1, shape[-1]
    padded_rows, padded_columns = storage.padded_rows(rows), storage.padded_columns(columns)
    values_bytes = padded_rows * padded_columns * BITS[storage.kind] // 8
    end = num_matrices * values_bytes
    if not storage.is_quantized:
        return Places(storage, num_matrices, padded_rows, padded_columns, 0, values_bytes, end, 0, end, 0, end)
    groups = storage.num_groups(columns)
    scales_start, scales_bytes = aligned(end), padded_rows * groups * storage.scale_bytes
    end = scales_start + num_matrices * scales_bytes
    offsets_start, offsets_bytes = (aligned(end), padded_rows * groups * OFFSET_BYTES) if storage.has_offsets else (end, 0)
    end = offsets_start + num_matrices * offsets_bytes
    return Places(
        storage,
        num_matrices,
        padded_rows,
        padded_columns,
        groups,
        values_bytes,
        scales_start,
        scales_bytes,
        offsets_start,
        offsets_bytes,
        end,
    )


def aligned(size_bytes: int) -> int:
    """The next multiple of `ALIGN_BYTES`."""
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES
