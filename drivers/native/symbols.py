"""The names in a model's calls, and what they are in records: values of a step, and places in segments.

A value is a buffer for each (name, width) that occurs; the residual is value 0. Sizes, forms and places are checked here, so that the
engine need not look at them again.
"""

from __future__ import annotations

from collections.abc import Sequence

from drivers.models.layout import Part, Segment
from drivers.models.storage import PANEL_ROWS, Kind
from drivers.native.program import NotCovered
from drivers.native.records import KINDS, VectorRecord, WeightRecord


class Symbols:
    """What names mean in the list of calls at hand, that of segment `idx`."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.values: dict[str, int] = {"residual": 0}  # by name, as it was written last
        self.widths: list[int] = [0]
        self.idx = 0
        self._known: dict[tuple[str, int], int] = {}
        self._segments = segments
        self._parts = [{part.name: part for part in segment.parts} for segment in segments]

    def begin(self, idx: int) -> None:
        """Begin with the list of segment `idx`, of which nothing but the residual is left from the one before."""
        self.idx, self.values = idx, {"residual": 0}

    def read(self, name: str) -> int:
        """The value of that name. Raises: NotCovered, if nothing has written it."""
        if name not in self.values:
            raise NotCovered(f"{name} is read before it is written")
        return self.values[name]

    def width(self, name: str) -> int:
        """Of the value of that name."""
        return self.widths[self.read(name)]

    def write(self, name: str, width: int) -> int:
        """The value that a call writes under that name."""
        if name == "residual":
            if self.widths[0] not in (0, width):
                raise NotCovered(f"the residual is {self.widths[0]} wide and gets rows of {width}")
            self.widths[0] = width
            return 0
        if (name, width) not in self._known:
            self._known[name, width] = len(self.widths)
            self.widths.append(width)
        self.values[name] = self._known[name, width]
        return self.values[name]

    def part(self, name: str) -> tuple[int, Part]:
        """A part and its segment: the present one, or the first (a tied head)."""
        for idx in (self.idx, 0):
            if name in self._parts[idx]:
                return idx, self._parts[idx][name]
        raise NotCovered(f"{self._segments[self.idx].name} has no part {name}")

    def vector(self, name: str, size: int) -> VectorRecord:
        """Where a vector of that size lies."""
        idx, part = self.part(name)
        if part.shape != (size,) or part.storage.kind is not Kind.FLOAT32:
            raise NotCovered(f"{name} is {part.shape} in {part.storage.kind.value}; native code wants ({size},) in float32")
        self._check_place(idx, part)
        return VectorRecord(idx, size, part.offset_bytes)

    def matrix(self, name: str, columns: int, num: int = 1) -> WeightRecord:
        """Where a matrix of so many columns lies, or `num` of them."""
        idx, part = self.part(name)
        kind, places = part.storage.kind, part.places
        if not part.storage.is_panels or kind not in KINDS:
            raise NotCovered(f"{name} is not in panels of floats or integers")
        if part.shape[-1] != columns or places.num_matrices != num or len(part.shape) < 2:
            raise NotCovered(f"{name} is {part.shape}; its inputs are {columns} wide")
        if part.storage.group and (columns % part.storage.group or part.storage.group % 32):
            raise NotCovered(f"{name} has {columns} columns in groups of {part.storage.group}")
        self._check_place(idx, part)
        start = part.offset_bytes
        offsets = start + places.offsets_start if part.storage.has_offsets else -1
        return WeightRecord(
            *(idx, KINDS[kind], part.shape[-2], columns, part.storage.group),
            *(start, start + places.scales_start, offsets),
            *(places.values_bytes, places.scales_bytes, places.offsets_bytes),
        )

    def _check_place(self, idx: int, part: Part) -> None:
        segment = self._segments[idx]
        if part.offset_bytes % 64 or not 0 <= part.offset_bytes <= segment.size_bytes - part.places.size_bytes:
            raise NotCovered(f"{part.name} at {part.offset_bytes} is not aligned or leaves segment {segment.name}")

    def has_halves(self, name: str) -> bool:
        """Whether half of a matrix's rows are whole panels."""
        _, part = self.part(name)
        return part.shape[0] % (2 * PANEL_ROWS) == 0
