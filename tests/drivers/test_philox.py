"""The counter-based generator: known answers, range, and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.philox import philox, uniforms

# Source: kat_vectors of Random123 1.14, lines "philox4x32 10".
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    found = philox(np.array([counter], dtype=np.uint64), np.array([key], dtype=np.uint64))
    assert tuple(found[0].tolist()) == words


def test_a_number_depends_on_its_seed_and_position_alone() -> None:
    together = uniforms([5, 6, 5, 1 << 63], [1, 1, 2, 1 << 40])
    alone = [uniforms([seed], [position])[0] for seed, position in ((5, 1), (6, 1), (5, 2), (1 << 63, 1 << 40))]
    assert together.tolist() == alone
    assert len(set(alone)) == 4


def test_numbers_are_spread_evenly_over_the_unit_interval() -> None:
    numbers = uniforms([42] * 20_000, list(range(20_000)))
    counts, _ = np.histogram(numbers, bins=20, range=(0.0, 1.0))
    assert counts.sum() == 20_000
    assert abs(counts - 1000).max() < 150


def test_negative_seeds_are_taken_modulo_two_to_the_64() -> None:
    assert uniforms([-1], [0])[0] == uniforms([(1 << 64) - 1], [0])[0]
