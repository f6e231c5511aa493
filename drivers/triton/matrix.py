"""A matrix of 8- or 4-bit weights on the device, row by row, with its scales."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class QuantMatrix:
    """`w[n, k] = scale[n, k // group] * q[n, k] - offset[n, k // group]`; see drivers.models.storage."""

    values: Tensor  # [rows, columns] uint8; of 4 bits [rows, (columns + 1) / 2], the even column in the lower half
    scales: Tensor  # [rows, groups]
    offsets: Tensor | None  # the same; None: scale * 2^(bits - 1)
    columns: int
    group: int  # columns that share a scale; 0: all of a row
    bits: int

    @property
    def rows(self) -> int:
        """Outputs of the linear."""
        return self.values.shape[0]

    @property
    def num_groups(self) -> int:
        """Scales of one row."""
        return self.scales.numel() // self.rows


Stack = Tensor | QuantMatrix  # matrices of one shape, one behind the other: [matrices, rows, columns], or all of their rows
Stacks = tuple[Stack, Stack]  # of experts: gates and ups, downs
