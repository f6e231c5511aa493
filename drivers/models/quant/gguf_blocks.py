"""The blocks of GGUF tensors, and what becomes of them.

    type          values in a block                                  here
    F32 F16 BF16                                                     as they are
    Q8_0          32: f16 d, q int8            d q                   int8 in groups of 32
    Q4_0          32: f16 d, q 4 bits          d (q - 8)             int4 in groups of 32
    Q4_1          32: f16 d, m, q 4 bits       d q + m               int4 in groups of 32, with offsets
    Q5_0, Q5_1    the same with q of 5 bits    d (q - 16); d q + m   int8 in groups of 32; Q5_1 with offsets
    Q4_K, Q5_K    256: f16 d, dmin; of 32 each: 6 bits s and m, q    int4, int8 in groups of 32, with offsets
                                               d s q - dmin m
    Q6_K          256: f16 d; of 16 each: int8 s, q 6 bits           floats: there are no groups of 16
    Q2_K, Q3_K    256: of 16 each                                    floats

All but the last are exact, with one exception: d s of Q4_K and Q5_K is rounded to float16, less than half a percent of a step of q.

Source: ggml-quants.c and ggml-common.h of ggml (block_q4_0 and so on, dequantize_row_*).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from drivers.models.storage import Kind, Storage
from drivers.models.tiles import NUMPY, Array, Tile

SMALL, LARGE = 32, 256


@dataclass(frozen=True, slots=True)
class BlockType:
    """One type of tensor."""

    name: str
    columns: int  # of a block
    block_bytes: int
    form: Storage
    decode: Callable[[Array], Tile]  # blocks of rows `[rows, blocks, block_bytes] uint8`


def _plain(kind: Kind) -> Callable[[Array], Tile]:
    return lambda blocks: Tile(kind, np.ascontiguousarray(blocks).reshape(len(blocks), -1).view(NUMPY[kind]))


def _half(blocks: Array, start: int) -> Array:
    """The float16 at byte `start` of every block: `[rows, blocks]`."""
    values: Array = np.ascontiguousarray(blocks[:, :, start : start + 2]).view(np.float16)[:, :, 0]
    return values


def _flat(values: Array) -> Array:
    return values.reshape(len(values), -1)


def _integers(values: Array, scales: Array, offsets: Array | None, kind: Kind) -> Tile:
    return Tile(kind, _flat(values), _flat(scales), None if offsets is None else _flat(offsets), SMALL)


def _halves(packed: Array) -> Array:
    """Bytes of which the lower halves are the first values, and the upper halves the rest: `[..., n] -> [..., 2 n]`."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(blocks: Array, start: int) -> Array:
    """32 bits, one for each value, as 16 or 0: `[rows, blocks, 32]`."""
    return np.unpackbits(np.ascontiguousarray(blocks[:, :, start : start + 4]), axis=-1, bitorder="little") << 4


def _q8_0(blocks: Array) -> Tile:
    return _integers(blocks[:, :, 2:] ^ np.uint8(128), _half(blocks, 0), None, Kind.INT8)


def _q4_0(blocks: Array) -> Tile:
    return _integers(_halves(blocks[:, :, 2:]), _half(blocks, 0), None, Kind.INT4)


def _q4_1(blocks: Array) -> Tile:
    return _integers(_halves(blocks[:, :, 4:]), _half(blocks, 0), -_half(blocks, 2).astype(np.float32), Kind.INT4)


def _q5_0(blocks: Array) -> Tile:
    values = (_halves(blocks[:, :, 6:]) | _fifth_bits(blocks, 2)) + np.uint8(128 - 16)
    return _integers(values, _half(blocks, 0), None, Kind.INT8)


def _q5_1(blocks: Array) -> Tile:
    values = _halves(blocks[:, :, 8:]) | _fifth_bits(blocks, 4)
    return _integers(values, _half(blocks, 0), -_half(blocks, 2).astype(np.float32), Kind.INT8)


def _scales_of_k(blocks: Array) -> tuple[Array, Array]:
    """d s and dmin m of the eight groups of each block, `[rows, blocks, 8] float32`: 6 bits each, packed into 12 bytes."""
    low, middle, high = (blocks[:, :, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate((low & 63, (high & 15) | (low >> 6) << 4), axis=-1)
    least = np.concatenate((middle & 63, (high >> 4) | (middle >> 6) << 4), axis=-1)
    d, dmin = (_half(blocks, start).astype(np.float32)[..., None] for start in (0, 2))
    return d * scales, dmin * least


def _q4_k(blocks: Array) -> Tile:
    scales, offsets = _scales_of_k(blocks)
    packed = blocks[:, :, 16:144].reshape(*blocks.shape[:2], 4, 32)
    return _integers(_halves(packed), _rounded(scales), offsets, Kind.INT4)


def _q5_k(blocks: Array) -> Tile:
    scales, offsets = _scales_of_k(blocks)
    packed = _halves(blocks[:, :, 48:176].reshape(*blocks.shape[:2], 4, 32)).reshape(*blocks.shape[:2], 8, 32)
    groups = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks[:, :, 16:48][:, :, None] >> groups & 1) << 4
    return _integers(packed | fifth, _rounded(scales), offsets, Kind.INT8)


def _rounded(scales: Array) -> Array:
    with np.errstate(over="ignore"):  # infinite ones are refused when the tile is put into the arena
        return scales.astype(np.float16)


def _q6_k(blocks: Array) -> Tile:
    shape = blocks.shape[:2]
    low = blocks[:, :, :128].reshape(*shape, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
    high = blocks[:, :, 128:192].reshape(*shape, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
    values = (low.reshape(*shape, 2, 4, 32) | high << 4).astype(np.int8) - np.int8(32)
    scales = blocks[:, :, 192:208].view(np.int8).astype(np.float32) * _half(blocks, 208).astype(np.float32)[..., None]
    return _floats(values.reshape(*shape, 16, 16) * scales[..., None])


def _q2_k(blocks: Array) -> Tile:
    shape = blocks.shape[:2]
    codes, d, dmin = blocks[:, :, :16], _half(blocks, 80).astype(np.float32)[..., None], _half(blocks, 82).astype(np.float32)[..., None]
    shifts = np.array([[0], [2], [4], [6]], np.uint8)
    values = (blocks[:, :, 16:80].reshape(*shape, 2, 1, 32) >> shifts & 3).reshape(*shape, 16, 16)
    return _floats(values * (d * (codes & 15))[..., None] - (dmin * (codes >> 4))[..., None])


def _q3_k(blocks: Array) -> Tile:
    shape = blocks.shape[:2]
    shifts = np.array([[0], [2], [4], [6]], np.uint8)
    low = (blocks[:, :, 32:96].reshape(*shape, 2, 1, 32) >> shifts & 3).reshape(*shape, 16, 16)
    missing = ~blocks[:, :, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # where the bit is not set, 4 is to be taken away
    values = low.astype(np.int8) - (missing.reshape(*shape, 16, 16) << 2).astype(np.int8)
    packed = blocks[:, :, 96:108]
    scales = (_halves(packed[:, :, :8]) | (packed[:, :, None, 8:] >> shifts & 3).reshape(*shape, 16) << 4).astype(np.int8) - np.int8(32)
    return _floats(values * (scales * _half(blocks, 108).astype(np.float32)[..., None])[..., None])


def _floats(values: Array) -> Tile:
    return Tile(Kind.FLOAT32, _flat(values).astype(np.float32, copy=False))


FLOATS = Storage(Kind.FLOAT32)
BLOCK_TYPES = {
    0: BlockType("F32", 1, 4, FLOATS, _plain(Kind.FLOAT32)),
    1: BlockType("F16", 1, 2, Storage(Kind.FLOAT16), _plain(Kind.FLOAT16)),
    30: BlockType("BF16", 1, 2, Storage(Kind.BFLOAT16), _plain(Kind.BFLOAT16)),
    2: BlockType("Q4_0", SMALL, 18, Storage(Kind.INT4, SMALL), _q4_0),
    3: BlockType("Q4_1", SMALL, 20, Storage(Kind.INT4, SMALL, has_offsets=True), _q4_1),
    6: BlockType("Q5_0", SMALL, 22, Storage(Kind.INT8, SMALL), _q5_0),
    7: BlockType("Q5_1", SMALL, 24, Storage(Kind.INT8, SMALL, has_offsets=True), _q5_1),
    8: BlockType("Q8_0", SMALL, 34, Storage(Kind.INT8, SMALL), _q8_0),
    10: BlockType("Q2_K", LARGE, 84, FLOATS, _q2_k),
    11: BlockType("Q3_K", LARGE, 110, FLOATS, _q3_k),
    12: BlockType("Q4_K", LARGE, 144, Storage(Kind.INT4, SMALL, has_offsets=True), _q4_k),
    13: BlockType("Q5_K", LARGE, 176, Storage(Kind.INT8, SMALL, has_offsets=True), _q5_k),
    14: BlockType("Q6_K", LARGE, 210, FLOATS, _q6_k),
}
