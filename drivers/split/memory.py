"""The arena of a split device: the same granules on every stage, each with bytes of its own there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drivers.errors import DeviceOutOfMemory, PlanRejected
from drivers.split.shares import Shares
from drivers.split.stage import Stage


class SplitMemory:
    """Granules [0, num_granules) of all stages."""

    def __init__(self, stages: Sequence[Stage], shares: Shares, num_granules: int) -> None:
        self.stages = tuple(stages)
        self.shares = shares
        self.num_granules = num_granules

    @property
    def granule_bytes(self) -> int:
        """On all stages together."""
        return self.shares.total_bytes

    def save(self, first: int, target: memoryview) -> None:
        """Copy granules from `first` on to the host, as many as `target` holds: those of a stage behind those of the one before."""
        for stage, start, part in self.cut(first, target):
            stage.read(start, part)

    def restore(self, first: int, source: memoryview) -> None:
        """The reverse of `save`."""
        for stage, start, part in self.cut(first, source):
            stage.write(start, part)

    def zero(self, first: int, num: int) -> None:
        """Fill granules with zeros."""
        for stage, (start, size) in zip(self.stages, self.shares.spans(first, num), strict=True):
            stage.zero(start, size)

    def copy(self, source: int, target: int, num: int) -> None:
        """Copy granules within each stage."""
        sources, targets = self.shares.spans(source, num), self.shares.spans(target, num)
        for stage, (start, size), (to, _size) in zip(self.stages, sources, targets, strict=True):
            stage.copy(start, to, size)

    def cut(self, first: int, whole: memoryview) -> Iterator[tuple[Stage, int, memoryview]]:
        """Bytes of granules from `first` on, as they lie outside of the device: stage by stage, with where they begin in its memory."""
        spans = self.shares.spans(first, len(whole) // self.granule_bytes)
        for stage, (start, _size), part in zip(self.stages, spans, self.shares.cut(whole), strict=True):
            yield stage, start, part

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """Let every device have the memory of slabs, or none. Raises: PlanRejected."""
        given: list[Stage] = []
        try:
            for stage in self.stages:
                stage.give_back(slabs)
                given.append(stage)
        except PlanRejected:
            for stage in given:
                stage.take(slabs)
            raise

    def take(self, slabs: tuple[int, ...]) -> None:
        """Have the memory of slabs again, on every device or on none. Raises: DeviceOutOfMemory, PlanRejected."""
        taken: list[Stage] = []
        try:
            for stage in self.stages:
                stage.take(slabs)
                taken.append(stage)
        except DeviceOutOfMemory:
            for stage in taken:
                stage.give_back(slabs)
            raise

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
        for stage in self.stages:
            stage.close()
