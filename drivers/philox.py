"""Philox-4x32-10: random numbers as a function of a key and a counter, so that a stream that was cut off draws the same ones again.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and the known-answer vectors of Random123.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF


def philox(counters: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Four words for each counter `[n, 4]` under its key `[n, 2]`; every word is 32 bits in a uint64. Answers `[n, 4]`."""
    c0, c1, c2, c3 = (counters[:, word] for word in range(4))
    k0, k1 = keys[:, 0], keys[:, 1]
    low, shift = np.uint64(WORD), np.uint64(32)
    for _ in range(ROUNDS):
        one, two = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (two >> shift) ^ c1 ^ k0, two & low, (one >> shift) ^ c3 ^ k1, one & low
        k0, k1 = (k0 + np.uint64(WEYL[0])) & low, (k1 + np.uint64(WEYL[1])) & low
    return np.stack((c0, c1, c2, c3), axis=1)


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """One number in [0, 1) for each (seed, position), `[n] f64`, with 53 random bits. Seeds are taken modulo 2^64."""
    keys = _words(seeds)
    counters = np.zeros((len(keys), 4), dtype=np.uint64)
    counters[:, :2] = _words(positions)
    words = philox(counters, keys)
    bits = (words[:, 0] >> np.uint64(5) << np.uint64(26)) | (words[:, 1] >> np.uint64(6))
    return bits.astype(np.float64) / float(1 << 53)


def _words(values: Sequence[int]) -> np.ndarray:
    """Each 64-bit value as (low, high) words, `[n, 2]`."""
    return np.array([(value & WORD, value >> 32 & WORD) for value in values], dtype=np.uint64).reshape(-1, 2)
