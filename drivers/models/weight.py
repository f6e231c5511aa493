"""A matrix of weights in the arena that is not simply a tensor of floats: what its numbers are, and how to have them back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drivers.models.storage import BITS, COLUMNS_AT_ONCE, PANEL_ROWS, Kind, Places, Storage, places_of

DTYPES = {Kind.FLOAT32: torch.float32, Kind.BFLOAT16: torch.bfloat16, Kind.FLOAT16: torch.float16}
KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Weight:
    """A view of one part. Rows are the outputs of a linear, as those of a plain weight `[out, in]`."""

    storage: Storage
    shape: tuple[int, ...]  # [rows, columns] or [matrices, rows, columns], without padding
    bytes: Tensor  # [size_bytes] uint8: values, scales and offsets

    @property
    def places(self) -> Places:
        """Where values, scales and offsets lie in `bytes`."""
        return places_of(self.storage, self.shape)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weights as floats of this dtype, computed in float32; a new tensor of `shape`."""
        places, rows, columns = self.places, self.shape[-2], self.shape[-1]
        values = self._values(places)[:, :rows, :columns]
        if self.storage.is_quantized:
            values = self._scaled(values.float(), places)
        return values.to(dtype).reshape(self.shape)

    def rows(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of a matrix `[n, columns]`, as `dequantize` gives them, for `rows [n] int64`."""
        if self.storage.is_panels:
            return self.dequantize(dtype)[rows]
        places = self.places
        values = self._raw(places).view(places.rows, -1)[rows]
        found = _plain(values, self.storage)[:, : self.shape[-1]]
        if not self.storage.is_quantized:
            return found.to(dtype)
        scales, offsets = self._scales(places)
        some = found.float().view(len(rows), places.groups, -1)
        return _dequantized(some, scales[0, rows], None if offsets is None else offsets[0, rows], self.storage).view(found.shape).to(dtype)

    def _raw(self, places: Places) -> Tensor:
        return self.bytes[: places.num_matrices * places.values_bytes]

    def _values(self, places: Places) -> Tensor:
        """`[matrices, padded rows, padded columns]`, integers as they are stored."""
        raw = self._raw(places)
        if not self.storage.is_panels:
            return _plain(raw.view(places.num_matrices * places.rows, -1), self.storage).view(places.num_matrices, places.rows, -1)
        per_unit = COLUMNS_AT_ONCE[self.storage.kind]
        units = places.columns // per_unit
        panels = raw.view(places.num_matrices, -1, units, PANEL_ROWS, 4).transpose(2, 3)
        if self.storage.kind is Kind.INT4:
            panels = torch.stack((panels & 15, panels >> 4), dim=-2)
        elif self.storage.kind is not Kind.INT8:
            panels = panels.contiguous().view(DTYPES[self.storage.kind])
        return panels.reshape(places.num_matrices, places.rows, places.columns)

    def _scales(self, places: Places) -> tuple[Tensor, Tensor | None]:
        """Of each row and group: `[matrices, padded rows, groups]`."""
        dtype = torch.float16 if self.storage.group else torch.float32
        scales = self._unturned(self.bytes[places.scales_start :][: places.num_matrices * places.scales_bytes].view(dtype), places)
        if not self.storage.has_offsets:
            return scales, None
        offsets = self.bytes[places.offsets_start :][: places.num_matrices * places.offsets_bytes].view(torch.float32)
        return scales, self._unturned(offsets, places)

    def _unturned(self, scales: Tensor, places: Places) -> Tensor:
        if not self.storage.is_panels:
            return scales.view(places.num_matrices, places.rows, places.groups)
        turned = scales.view(places.num_matrices, -1, places.groups, PANEL_ROWS).transpose(2, 3)
        return turned.reshape(places.num_matrices, places.rows, places.groups)

    def _scaled(self, values: Tensor, places: Places) -> Tensor:
        scales, offsets = self._scales(places)
        rows, columns = self.shape[-2], self.shape[-1]
        grouped = values.reshape(places.num_matrices, rows, places.groups, -1)
        some = None if offsets is None else offsets[:, :rows]
        return _dequantized(grouped, scales[:, :rows], some, self.storage).reshape(places.num_matrices, rows, columns)


def view_part(part: Tensor, storage: Storage, shape: tuple[int, ...]) -> Tensor | Weight:
    """A part of the arena, given as its bytes: a tensor where it is plain floats, else a weight."""
    if storage.is_quantized or storage.is_panels:
        return Weight(storage, shape, part)
    return part.view(DTYPES[storage.kind]).view(shape)


def _plain(values: Tensor, storage: Storage) -> Tensor:
    """Rows of bytes `[n, row_bytes]` as rows of numbers."""
    if storage.kind is Kind.INT8:
        return values
    if storage.kind is Kind.INT4:
        return torch.stack((values & 15, values >> 4), dim=-1).view(values.shape[0], -1)
    return values.contiguous().view(DTYPES[storage.kind])


def _dequantized(grouped: Tensor, scales: Tensor, offsets: Tensor | None, storage: Storage) -> Tensor:
    """Integers `[..., rows, groups, n]` in float32 times their scales."""
    wide = scales.float().unsqueeze(-1)
    if offsets is None:
        return (grouped - (1 << (BITS[storage.kind] - 1))) * wide
    return grouped * wide - offsets.unsqueeze(-1)
