"""Rows of a matrix on their way from a file to the arena, and how they are turned from one kind of numbers into another.

A tile is worked on in any thread, so by numpy alone. numpy has no bfloat16: tiles hold its bits as uint16.

int8 by row is symmetric, `scale = |largest| / 127`. int4 in groups is symmetric about 8 of 0..15: the value of largest magnitude becomes
-8, which gives one more step on its side; of a few scales about that one, the group takes the one of least squared error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from drivers.errors import ModelCorrupt
from drivers.models.storage import BITS, Kind, Storage

NUMPY = {Kind.FLOAT32: np.float32, Kind.BFLOAT16: np.uint16, Kind.FLOAT16: np.float16, Kind.INT8: np.uint8, Kind.INT4: np.uint8}
MAX_FLOAT16 = 65504.0
SCALE_TRIALS = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the scale that holds all of a group: a smaller one clips its end and is finer elsewhere

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of a matrix, `[rows, columns]`; integers unsigned, one in a byte, with scales and offsets `[rows, groups]`."""

    kind: Kind
    values: Array
    scales: Array | None = None
    offsets: Array | None = None
    group: int = 0  # columns of one scale; 0: a whole row

    def part(self, first: int, end: int) -> Tile:
        """Some of its rows."""
        scales = None if self.scales is None else self.scales[first:end]
        offsets = None if self.offsets is None else self.offsets[first:end]
        return replace(self, values=self.values[first:end], scales=scales, offsets=offsets)


def convert(tile: Tile, storage: Storage, name: str) -> Tile:
    """The tile as the arena is to hold it. Raises: ModelCorrupt, if scales are not finite, or do not fit into what holds them."""
    if tile.scales is not None:
        _check_scales(tile, storage, name)
    if tile.kind is storage.kind:
        return tile if tile.scales is None else _regrouped(tile, storage)
    values = floats(tile)
    return quantize(values, storage, name) if storage.is_quantized else Tile(storage.kind, rounded(values, storage.kind))


def floats(tile: Tile) -> Array:
    """The values in float32."""
    if tile.kind is Kind.BFLOAT16:
        return (tile.values.astype(np.uint32) << 16).view(np.float32)
    if tile.scales is None:
        return tile.values.astype(np.float32, copy=False)
    columns = tile.values.shape[1]
    grouped = tile.values.astype(np.float32).reshape(tile.values.shape[0], tile.scales.shape[1], -1)
    scales = tile.scales.astype(np.float32)[..., None]
    if tile.offsets is None:
        return ((grouped - np.float32(1 << (BITS[tile.kind] - 1))) * scales).reshape(-1, columns)
    return (grouped * scales - tile.offsets.astype(np.float32)[..., None]).reshape(-1, columns)


def rounded(values: Array, kind: Kind) -> Array:
    """float32 rounded to a kind of floats, to nearest even."""
    if kind is Kind.FLOAT32:
        return values
    if kind is Kind.FLOAT16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    with np.errstate(over="ignore"):
        up = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    answer: Array = np.where(np.isnan(values), np.uint16(0x7FC0), up.astype(np.uint16))
    return answer


def quantize(values: Array, storage: Storage, name: str) -> Tile:
    """float32 as symmetric integers. Raises: ModelCorrupt, if a value is not finite: there is no scale for it."""
    rows, columns = values.shape
    grouped = values.reshape(rows, storage.num_groups(columns), -1)
    check_finite(Tile(Kind.FLOAT32, values), name)
    if storage.kind is Kind.INT8:
        scales = np.abs(grouped).max(-1) / np.float32(127)
        integers, scales = _integers(grouped, _stored(scales, storage), 128, (1, 255))
    else:
        integers, scales = _best_of_four_bits(grouped, storage)
    return Tile(storage.kind, integers.reshape(rows, columns), scales, None, storage.group)


def check_finite(tile: Tile, name: str) -> None:
    """Whether all floats of a tile are finite. Raises: ModelCorrupt."""
    is_wrong = ((tile.values & 0x7F80) == 0x7F80) if tile.kind is Kind.BFLOAT16 else ~np.isfinite(tile.values)
    if is_wrong.any():
        raise ModelCorrupt(f"{name} has values that are not finite; it cannot be quantized.")


def _best_of_four_bits(grouped: Array, storage: Storage) -> tuple[Array, Array]:
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(-1)[..., None], -1)[..., 0]
    best, best_scales, least = None, None, None
    for trial in SCALE_TRIALS:
        integers, scales = _integers(grouped, _stored(largest * np.float32(trial / -8), storage), 8, (0, 15))
        error = (integers.astype(np.float32) - np.float32(8)) * scales[..., None].astype(np.float32) - grouped
        squared = np.einsum("rgc,rgc->rg", error, error)
        if best is None or best_scales is None or least is None:
            best, best_scales, least = integers, scales, squared
            continue
        better = squared < least
        best[better], best_scales[better], least[better] = integers[better], scales[better], squared[better]
    assert best is not None
    assert best_scales is not None
    return best, best_scales


def _stored(scales: Array, storage: Storage) -> Array:
    """Scales as they are kept: the integers are chosen for what is kept, not for what was meant."""
    kept: Array = np.clip(scales, -MAX_FLOAT16, MAX_FLOAT16).astype(np.float16) if storage.group else scales.astype(np.float32)
    return kept


def _integers(grouped: Array, scales: Array, zero: int, bounds: tuple[int, int]) -> tuple[Array, Array]:
    wide = scales.astype(np.float32)[..., None]
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
    with np.errstate(over="ignore"):
        steps = np.rint(grouped * inverse) + np.float32(zero)
    return np.clip(steps, *bounds).astype(np.uint8), scales


def _regrouped(tile: Tile, storage: Storage) -> Tile:
    """The same integers with as many scales as the arena keeps: one scale for more than one group stands in each of them."""
    assert tile.scales is not None
    groups = storage.num_groups(tile.values.shape[1])
    scales = np.repeat(tile.scales, groups // tile.scales.shape[1], axis=1)
    offsets = None
    if storage.has_offsets:
        middle = tile.scales.astype(np.float32) * np.float32(1 << (BITS[tile.kind] - 1))
        offsets = np.repeat(middle if tile.offsets is None else tile.offsets, groups // tile.scales.shape[1], axis=1)
    return Tile(tile.kind, tile.values, scales.astype(np.float16 if storage.group else np.float32), offsets, storage.group)


def _check_scales(tile: Tile, storage: Storage, name: str) -> None:
    assert tile.scales is not None
    if not np.isfinite(tile.scales).all() or (tile.offsets is not None and not np.isfinite(tile.offsets).all()):
        raise ModelCorrupt(f"{name} has scales or zero points that are not finite.")
    if storage.is_quantized and storage.group and np.abs(tile.scales).max(initial=0) > MAX_FLOAT16:
        raise ModelCorrupt(f"{name} has scales above {MAX_FLOAT16}, the largest number of float16, which keeps them.")
