"""Weights on their way to the device and back, a segment at a time, through pinned memory of the host.

    files --pieces--> staging 0 --copies--> arena        load: while one buffer drains, the next segment is read into the other
                      staging 1 --copies--> arena
    host tier ----------------- --copies--> arena        bring: the tier is pinned as a whole, so nothing lies between
    arena --------------------- --copies--> host tier    park

Staging buffers are as large as the largest segment, and are the load's for as long as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from crc32c import crc32c
from torch import Tensor

from drivers.contract import LoadSpec
from drivers.copier import Copier
from drivers.cuda.runtime import Event, Runtime
from drivers.errors import PlanRejected
from drivers.hostmem import HostMemory
from drivers.models.loader import ModelFiles, Target, load_weights
from drivers.weight_image import check_images

Progress = Callable[[int, int], None]


class WeightCourier:
    """Copies segments between files, the host tier and the arena of one device."""

    def __init__(self, runtime: Runtime, arena: Tensor, host: HostMemory | None, copier: Copier) -> None:
        self._runtime = runtime
        self._arena = arena
        self._host = host
        self._copier = copier

    def load(self, files: ModelFiles, offsets: Sequence[int], dtype: torch.dtype, progress: Progress) -> None:
        """Read segments from files to their offsets. Raises: ModelCorrupt, ModelUnsupported, DeviceOutOfMemory."""
        total = sum(part.places.size_bytes for segment in files.segments for part in segment.parts)
        largest = max(segment.size_bytes for segment in files.segments)
        staging = [self._runtime.pinned(largest) for _ in range(min(2, len(files.segments)))]
        busy: list[Event | None] = [None] * len(staging)
        done = 0
        progress(0, total)
        for idx, (segment, offset) in enumerate(zip(files.segments, offsets, strict=True)):
            turn = idx % len(staging)
            event = busy[turn]
            if event is not None:
                event.wait()
            one = replace(files, segments=(segment,))
            load_weights(one, Target(staging[turn], (0,), dtype, self._copier), _behind(done, total, progress))
            done += sum(part.places.size_bytes for part in segment.parts)
            busy[turn] = self._up(staging[turn][: segment.size_bytes], offset)
        self._finish()

    def write(self, size_bytes: int, offset: int, fill: Callable[[Tensor], object]) -> None:
        """Have the host fill memory, and copy it to an offset. Raises: what `fill` raises, then nothing was copied; DeviceOutOfMemory."""
        staging = self._runtime.pinned(size_bytes)
        fill(staging)
        self._up(staging, offset)
        self._finish()

    def bring(self, spec: LoadSpec, sizes: Sequence[int], progress: Progress) -> list[int]:
        """Copy images of the host tier to the offsets of a load; answers the segments that do not hold their checksum.

        Raises: PlanRejected.
        """
        host = self._tier()
        check_images(sizes, spec.host_offsets, host)
        bad: list[int] = []
        done, total = 0, sum(sizes)
        progress(0, total)
        for idx, (size, start, offset) in enumerate(zip(sizes, spec.host_offsets, spec.offsets, strict=True)):
            image = _tensor_of(host.span(start, size))
            if crc32c(image.numpy().data) == spec.checksums[idx]:
                self._up(image, offset)
            else:
                bad.append(idx)
            done += size
            progress(done, total)
        self._finish()
        return bad

    def park(self, places: Sequence[tuple[int, int]], host_offsets: Sequence[int]) -> tuple[int, ...]:
        """Copy segments, given as (offset, size), to the host tier; answers their checksums. Raises: PlanRejected."""
        host = self._tier()
        check_images([size for _, size in places], host_offsets, host)
        images = [_tensor_of(host.span(start, size)) for (_, size), start in zip(places, host_offsets, strict=True)]
        for (offset, size), image in zip(places, images, strict=True):
            self._runtime.copies.run(lambda image=image, offset=offset, size=size: _copy(image, self._arena[offset : offset + size]))  # type: ignore[misc]
        self._finish()
        return tuple(crc32c(image.numpy().data) for image in images)

    def _up(self, source: Tensor, offset: int) -> Event:
        target = self._arena[offset : offset + source.numel()]
        self._runtime.copies.run(lambda: _copy(target, source))
        return self._runtime.copies.record()

    def _finish(self) -> None:
        """What copies wrote is there, also for steps."""
        self._runtime.copies.record().wait()

    def _tier(self) -> HostMemory:
        if self._host is None:
            raise PlanRejected("The driver was opened without a host tier.")
        return self._host


def _behind(before: int, total: int, progress: Progress) -> Progress:
    """Progress of one segment as that of the whole."""
    return lambda done, _total: progress(before + done, total)


def _tensor_of(memory: memoryview) -> Tensor:
    return torch.from_numpy(np.frombuffer(memory, dtype=np.uint8))


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source, non_blocking=True)
