"""Tiles into the arena, row by row or as panels (`drivers.models.storage`), and out of it again.

Whatever the kind, a panel is sixteen rows of 32-bit units turned on their side: a unit holds one float32, two bfloat16, four int8 or eight
int4. The native library turns them; numpy is the definition, and does it where the library is not built.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drivers.models.storage import PANEL_ROWS, Kind, Places
from drivers.models.tiles import Array, Tile


@dataclass(frozen=True, slots=True)
class Region:
    """One part in the arena."""

    places: Places
    bytes: Array  # [size_bytes] uint8

    def put(self, tile: Tile, matrix: int, row: int) -> None:
        """Write rows from `row` of one of the part's matrices on. In panels, `row` begins a panel, and the last panel is filled up."""
        places, storage = self.places, self.places.storage
        values = self.bytes[matrix * places.values_bytes : (matrix + 1) * places.values_bytes]
        end = row + places.storage.padded_rows(len(tile.values))
        row_bytes = places.values_bytes // places.rows
        units = units_of(tile, places)
        if storage.is_panels:
            turn(units, values[row * row_bytes : end * row_bytes].view(np.uint32))
        else:
            values[row * row_bytes : end * row_bytes] = units.reshape(-1)
        if tile.scales is not None:
            self._put_scales(tile.scales, (places.scales_start, places.scales_bytes), (matrix, row, end))
        if tile.offsets is not None:
            self._put_scales(tile.offsets.astype(np.float32), (places.offsets_start, places.offsets_bytes), (matrix, row, end))

    def _put_scales(self, scales: Array, place: tuple[int, int], where: tuple[int, int, int]) -> None:
        (start, size), (matrix, row, end) = place, where
        target = self.bytes[start + matrix * size : start + (matrix + 1) * size].view(scales.dtype).reshape(self.places.rows, -1)
        if not self.places.storage.is_panels:
            target[row:end] = scales
            return
        padded = np.zeros((end - row, scales.shape[1]), scales.dtype)
        padded[: len(scales)] = scales
        target[row:end] = padded.reshape(-1, PANEL_ROWS, scales.shape[1]).transpose(0, 2, 1).reshape(end - row, -1)


def units_of(tile: Tile, places: Places) -> Array:
    """Rows as they lie in memory: columns padded with zeros, four-bit values two in a byte; `[rows, row_bytes] uint8`."""
    values = tile.values
    if places.columns != values.shape[1]:
        values = np.pad(values, ((0, 0), (0, places.columns - values.shape[1])))
    if tile.kind is not Kind.INT4:
        return np.ascontiguousarray(values).view(np.uint8)
    pairs = values.reshape(len(values), -1, 2, 4) if places.storage.is_panels else values.reshape(len(values), -1, 2, 1)
    packed: Array = pairs[:, :, 0] | pairs[:, :, 1] << 4
    return packed.reshape(len(values), -1)


def turn(rows: Array, target: Array) -> None:
    """Write rows `[n, row_bytes] uint8` as panels of 32-bit units to `target`, whose last panel is filled up with zeros."""
    units = rows.view(np.uint32)
    panels = target.reshape(-1, units.shape[1], PANEL_ROWS)
    whole = len(units) // PANEL_ROWS
    panels[:whole] = units[: whole * PANEL_ROWS].reshape(whole, PANEL_ROWS, units.shape[1]).transpose(0, 2, 1)
    if whole < len(panels):
        panels[whole] = 0
        panels[whole, :, : len(units) - whole * PANEL_ROWS] = units[whole * PANEL_ROWS :].T
