"""crc32c of bytes that were looked at in pieces, in any order: the checksums of two neighbours tell that of both.

A cyclic redundancy check is linear: appending n zero bytes to what was checked turns its checksum by a matrix over GF(2), and the checksum
of `first + second` is the turned checksum of `first`, xor that of `second`.

Source: Mark Adler, crc32_combine of zlib, with the polynomial of Castagnoli.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

POLYNOMIAL = 0x82F63B78  # reversed
Matrix = tuple[int, ...]  # column by bit


def joined(pieces: Iterable[tuple[int, int]]) -> int:
    """The checksum of pieces that lie one behind the other, each given as (checksum, size in bytes)."""
    total = 0
    for checksum, size_bytes in pieces:
        total = _times(_zeros(size_bytes), total) ^ checksum
    return total


@lru_cache(maxsize=256)
def _zeros(size_bytes: int) -> Matrix:
    """What appending so many zero bytes does to a checksum."""
    result: Matrix | None = None
    power = _byte()
    while size_bytes:
        if size_bytes & 1:
            result = power if result is None else _product(power, result)
        power, size_bytes = _product(power, power), size_bytes >> 1
    return result or tuple(1 << bit for bit in range(32))


@lru_cache(maxsize=1)
def _byte() -> Matrix:
    """What appending one zero byte does."""
    bit = (POLYNOMIAL, *(1 << idx for idx in range(31)))
    two = _product(bit, bit)
    four = _product(two, two)
    return _product(four, four)


def _product(left: Matrix, right: Matrix) -> Matrix:
    return tuple(_times(left, column) for column in right)


def _times(matrix: Matrix, vector: int) -> int:
    total = 0
    for column in matrix:
        if vector & 1:
            total ^= column
        vector >>= 1
    return total
