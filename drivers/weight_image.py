"""Images of weights in the host tier: each segment, byte for byte as it lies in the arena, so that it comes back by copying.

    park    arena --pieces--> host tier     answers the crc32c of each segment
    bring   host tier --pieces--> arena     checks it; what does not hold is for the caller to read again

Checksums are taken of the bytes that are read, in the same pass over them as the copy: a piece is looked at `CACHE_BYTES` at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from crc32c import crc32c

from drivers.arena import Arena
from drivers.checksum import joined
from drivers.contract import LoadSpec
from drivers.copier import Copier, Piece
from drivers.errors import PlanRejected
from drivers.hostmem import HostMemory
from drivers.native.pages import native_pages

PIECE_BYTES = 4 << 20
CACHE_BYTES = 512 << 10


def park_segments(
    arena: Arena, host: HostMemory, places: Sequence[tuple[int, int]], host_offsets: Sequence[int], copier: Copier
) -> tuple[int, ...]:
    """Copy segments, given as (offset, size), to the host tier; answers their checksums.

    Raises: PlanRejected, if one is streamed or its image would lie outside of the tier.
    """
    if any(offset < 0 for offset, _size in places):
        raise PlanRejected("A model that is streamed is not parked: not all of it is in the arena.")
    check_images([size for _, size in places], host_offsets, host)
    pairs = zip(places, host_offsets, strict=True)
    segments = [Copied(arena.span(offset, size), host.span(start, size)) for (offset, size), start in pairs]
    return copy_segments(segments, copier, lambda _size: None)


def bring_segments(
    arena: Arena, host: HostMemory, spec: LoadSpec, sizes: Sequence[int], how: tuple[Copier, Callable[[int, int], None]]
) -> list[int]:
    """Copy the images of a load to its offsets, with its progress; answers the segments that do not hold their checksum.

    Raises: PlanRejected, if the images lie outside of the host tier.
    """
    check_images(sizes, spec.host_offsets, host)
    copier, progress = how
    done, total = 0, sum(sizes)
    progress(0, total)

    def add(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        progress(done, total)

    pairs = zip(spec.offsets, spec.host_offsets, sizes, strict=True)
    segments = [Copied(host.span(start, size), arena.span(offset, size)) for offset, start, size in pairs]
    found = copy_segments(segments, copier, add)
    return [idx for idx, pair in enumerate(zip(found, spec.checksums, strict=True)) if pair[0] != pair[1]]


def check_images(sizes: Sequence[int], host_offsets: Sequence[int], host: HostMemory) -> None:
    """Whether images of these sizes lie in the host tier. Raises: PlanRejected."""
    if len(sizes) != len(host_offsets) or any(
        start < 0 or start + size > host.size_bytes for start, size in zip(host_offsets, sizes, strict=True)
    ):
        raise PlanRejected(f"{len(sizes)} segments have {len(host_offsets)} images in the host tier, or some that leave it.")


class Copied(NamedTuple):
    """One segment of a copy."""

    source: memoryview
    target: memoryview


def copy_segments(segments: Sequence[Copied], copier: Copier, done: Callable[[int], None]) -> tuple[int, ...]:
    """Copy, and answer the crc32c of each segment as it was read; `done` is told the bytes of every piece."""
    checksums: list[list[tuple[int, int]]] = [[] for _ in segments]
    copier.run(_pieces(segments, checksums), done)
    return tuple(joined(parts) for parts in checksums)


def _pieces(segments: Sequence[Copied], checksums: list[list[tuple[int, int]]]) -> Iterator[Piece]:
    for segment, parts in zip(segments, checksums, strict=True):
        source, target = np.frombuffer(segment.source, np.uint8), np.frombuffer(segment.target, np.uint8)
        for start in range(0, len(source), PIECE_BYTES):
            yield _piece(source[start : start + PIECE_BYTES], target[start : start + PIECE_BYTES], parts)


def _piece(source: np.ndarray, target: np.ndarray, parts: list[tuple[int, int]]) -> Piece:
    native = native_pages()

    def move() -> int:
        if native is not None:
            return native.copy_stretch(target.ctypes.data, source.ctypes.data, len(source))
        checksum = 0
        for start in range(0, len(source), CACHE_BYTES):
            part = source[start : start + CACHE_BYTES]
            checksum = crc32c(part.data, checksum)
            np.copyto(target[start : start + CACHE_BYTES], part)
        return checksum

    return Piece(len(source), move, lambda checksum: parts.append((checksum, len(source))))
