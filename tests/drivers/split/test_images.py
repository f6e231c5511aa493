"""Bundles and their images in the host tier, larger than what is copied at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from crc32c import crc32c

from drivers.conformance_bench import open_spec
from drivers.copier import Copier
from drivers.errors import PlanRejected
from drivers.hostmem import HostMemory
from drivers.pacer import Pacer
from drivers.split.driver import SplitDriver
from drivers.split.images import Places, bring_bundles, park_bundles
from drivers.split.memory import SplitMemory
from drivers.weight_image import PIECE_BYTES

SLAB_BYTES = 1 << 20
GRANULE_BYTES = open_spec(1).granule_bytes
SIZES = (3 * PIECE_BYTES, PIECE_BYTES // 2)  # of two parts, the larger of which is more than a piece
OFFSETS = (GRANULE_BYTES, 4 * PIECE_BYTES)
PLACES = Places(SIZES, OFFSETS, (GRANULE_BYTES * 3, 5 * PIECE_BYTES))


@pytest.fixture
def memory() -> Iterator[SplitMemory]:
    """Two parts full of bytes that say where they are."""
    driver = SplitDriver()
    driver.open(open_spec(6 * PIECE_BYTES // SLAB_BYTES), None)
    memory = driver._opened().memory
    content = np.random.default_rng(1).integers(0, 256, 6 * PIECE_BYTES, dtype=np.uint8)
    memory.restore(0, content.data)
    yield memory
    driver.close()


@pytest.fixture
def host() -> Iterator[HostMemory]:
    """A host tier of zeros."""
    host = HostMemory.create(6 * PIECE_BYTES, GRANULE_BYTES)
    yield host
    host.close()


def bytes_of(memory: SplitMemory, offset: int, size_bytes: int) -> bytes:
    """What lies in a bundle, as its image has it."""
    found = bytearray(size_bytes)
    memory.save(offset // memory.granule_bytes, memoryview(found))
    return bytes(found)


def test_a_bundle_comes_back_as_it_was_parked(memory: SplitMemory, host: HostMemory) -> None:
    before = bytes_of(memory, 0, 6 * PIECE_BYTES)
    checksums = park_bundles(PLACES, memory, host, Copier())
    was = [bytes_of(memory, offset, size) for offset, size in zip(OFFSETS, SIZES, strict=True)]
    assert [bytes(host.span(at, size)) for at, size in zip(PLACES.host_offsets, SIZES, strict=True)] == was
    assert checksums == tuple(map(crc32c, was))
    for offset, size in zip(OFFSETS, SIZES, strict=True):
        memory.zero(offset // GRANULE_BYTES, size // GRANULE_BYTES)
    assert bring_bundles(PLACES, checksums, memory, host, Copier()) == []
    assert bytes_of(memory, 0, 6 * PIECE_BYTES) == before


def test_an_image_that_does_not_hold_is_named(memory: SplitMemory, host: HostMemory) -> None:
    checksums = park_bundles(PLACES, memory, host, Copier())
    host.span(PLACES.host_offsets[0] + SIZES[0] - 1, 1)[0] ^= 1
    assert bring_bundles(PLACES, checksums, memory, host, Copier()) == [0]


def test_an_image_outside_of_the_tier_is_refused_before_anything_is_copied(memory: SplitMemory, host: HostMemory) -> None:
    outside = Places(SIZES, OFFSETS, (0, 6 * PIECE_BYTES - GRANULE_BYTES))
    with pytest.raises(PlanRejected):
        park_bundles(outside, memory, host, Copier())
    assert not any(host.span(0, PIECE_BYTES))


def test_who_copies_beside_a_step_rests_after_each_piece(memory: SplitMemory, host: HostMemory) -> None:
    rests: list[float] = []
    pacer = Pacer(sleep=rests.append)
    with pacer.step():
        park_bundles(PLACES, memory, host, Copier(pacer=pacer))
    assert len(rests) >= 5  # three pieces and a half, cut where a part ends
