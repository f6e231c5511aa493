"""Images of bundles in the host tier: their bytes on all stages, one behind the other, under one checksum.

    park    stages --pieces--> host tier     answers the crc32c of each bundle
    bring   host tier --pieces--> stages     answers those that do not hold theirs, for the caller to read again

Pieces rest beside steps (`drivers.copier`), and are copied in the thread that asks: stages are not told of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from crc32c import crc32c

from drivers.copier import Copier, Piece
from drivers.hostmem import HostMemory
from drivers.split.memory import SplitMemory
from drivers.split.stage import Stage
from drivers.weight_image import PIECE_BYTES, check_images

Copy = Callable[[Stage, int, memoryview], None]  # between bytes of a stage, from there on, and some of the host


@dataclass(frozen=True, slots=True)
class Places:
    """Where bundles and their images are."""

    sizes: tuple[int, ...]
    offsets: tuple[int, ...]  # in the arena
    host_offsets: tuple[int, ...]


def park_bundles(places: Places, memory: SplitMemory, host: HostMemory, copier: Copier) -> tuple[int, ...]:
    """Copy bundles to the host tier; answers their checksums. Raises: PlanRejected, if an image would lie outside of it."""
    return _copied(places, (memory, host), copier, lambda stage, start, piece: stage.read(start, piece))


def bring_bundles(places: Places, checksums: Sequence[int], memory: SplitMemory, host: HostMemory, copier: Copier) -> list[int]:
    """Copy images to their bundles; answers the bundles that are not what was parked. Raises: PlanRejected."""
    found = _copied(places, (memory, host), copier, lambda stage, start, piece: stage.write(start, piece))
    return [idx for idx, (is_now, was) in enumerate(zip(found, checksums, strict=True)) if is_now != was]


def _copied(places: Places, tiers: tuple[SplitMemory, HostMemory], copier: Copier, copy: Copy) -> tuple[int, ...]:
    """Copy, and answer the checksum of each image."""
    memory, host = tiers
    check_images(places.sizes, places.host_offsets, host)
    found = [0] * len(places.sizes)

    def piece_of(idx: int, stage: Stage, start: int, part: memoryview) -> Piece:
        def finish(_moved: int) -> None:
            copy(stage, start, part)
            found[idx] = crc32c(part, found[idx])

        return Piece(len(part), lambda: 0, finish)

    copier.run((piece_of(*each) for each in _parts(places, memory, host)), lambda _size: None)
    return tuple(found)


def _parts(places: Places, memory: SplitMemory, host: HostMemory) -> Iterator[tuple[int, Stage, int, memoryview]]:
    """Bundle, stage, where in its memory, and the bytes of the host, in the order of the images."""
    for idx, (size, offset, at) in enumerate(zip(places.sizes, places.offsets, places.host_offsets, strict=True)):
        for stage, start, part in memory.cut(offset // memory.granule_bytes, host.span(at, size)):
            for done in range(0, len(part), PIECE_BYTES):
                yield idx, stage, start + done, part[done : done + PIECE_BYTES]
