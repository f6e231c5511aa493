"""How a matrix of weights lies in the arena: as numbers of some kind, with scales for those that are quantized.

    w[n, k] = scale[n, k // group] * q[n, k] - offset[n, k // group]          q unsigned, of 8 or 4 bits

Symmetric kinds have no offsets: theirs is `scale * 2^(bits - 1)`. Everything that checkpoints hold as integers comes to this (int8 by row,
Q8_0, Q4_0, Q4_1, GPTQ, AWQ, compressed-tensors) without loss; what does not is turned into floats on its way in.

    values | scales | offsets          one behind the other, each from a multiple of 64 bytes on

The plain order is row by row; int4 has two columns in a byte, the even one in the lower half. **Panels** are the order of native code:
sixteen rows side by side, so that one vector register holds one column, or a few, of all sixteen. With R rows padded to a multiple of 16
by rows of zeros (scales 0), N = R / 16:

    float32   [N][columns][16]
    bfloat16  [N][columns / 2][16][2]
    int8      [N][columns / 4][16][4]                       columns padded to a multiple of 4
    int4      [N][columns / 8][16][4]  bytes: byte j of a row's four holds column 8 c + j in its lower half and 8 c + 4 + j in its upper one
    scales    [N][groups][16], offsets alike

Scales are float32 where there is one for a row, and float16 where there are groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

ALIGN_BYTES = 64
PANEL_ROWS = 16


class Kind(Enum):
    """What numbers the values are."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"


BITS = {Kind.FLOAT32: 32, Kind.BFLOAT16: 16, Kind.FLOAT16: 16, Kind.INT8: 8, Kind.INT4: 4}
COLUMNS_AT_ONCE = {Kind.FLOAT32: 1, Kind.BFLOAT16: 2, Kind.INT8: 4, Kind.INT4: 8}  # in panels


@dataclass(frozen=True, slots=True)
class Storage:
    """The form of one matrix."""

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
        """Of one scale, or one offset."""
        return 2 if self.group else 4
