"""How one arena is made of several: each granule has its part of bytes on every device, and frames and offsets are the same on all.

    granule    |<------------ granule_bytes ------------>|
    device 0   |  granule_bytes[0]  |                        its bytes of granule g begin at g * granule_bytes[0] of its own memory
    device 1                        |  granule_bytes[1]  |   and these at g * granule_bytes[1]

So a page, which needs its layers' keys and values on every device, is in one frame and comes and goes as one; whoever pages sees one arena.
The price is rounding: what a frame takes is what it takes on the device where it needs most granules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from drivers.models.storage import ALIGN_BYTES


@dataclass(frozen=True, slots=True)
class Shares:
    """The bytes of a granule on each device; whole units of `ALIGN_BYTES`."""

    granule_bytes: tuple[int, ...]

    @classmethod
    def of(cls, weights: Sequence[int], granule_bytes: int) -> Shares:
        """Share a granule out by weights, the largest remainders up; a device with any weight gets a unit at least.

        Raises: ValueError, if there are more devices than units, or a granule is not whole units.
        """
        units, rest = divmod(granule_bytes, ALIGN_BYTES)
        if rest:
            raise ValueError(f"{granule_bytes} is not a multiple of {ALIGN_BYTES}.")
        return cls(tuple(ALIGN_BYTES * num for num in _apportioned(units, weights)))

    @property
    def total_bytes(self) -> int:
        """Of a granule on all devices."""
        return sum(self.granule_bytes)

    def layers(self, num_layers: int) -> tuple[range, ...]:
        """The layers of each device, in proportion to its bytes. Raises: ValueError, if there are fewer layers than devices."""
        ends = accumulate(_apportioned(num_layers, self.granule_bytes), initial=0)
        return tuple(range(first, end) for first, end in pairwise(ends))

    def num_granules(self, sizes: Sequence[int]) -> int:
        """Granules that hold so many bytes on each device."""
        return max(-(-size // granule) for size, granule in zip(sizes, self.granule_bytes, strict=True))

    def spans(self, first: int, num: int) -> tuple[tuple[int, int], ...]:
        """Where granules [first, first + num) lie on each device, as (start, size) in bytes."""
        return tuple((first * granule, num * granule) for granule in self.granule_bytes)

    def cut(self, whole: memoryview) -> Iterator[memoryview]:
        """The bytes of some granules, one device behind the other, as each device's."""
        num, start = len(whole) // self.total_bytes, 0
        for granule in self.granule_bytes:
            yield whole[start : start + num * granule]
            start += num * granule


def _apportioned(num: int, weights: Sequence[int]) -> list[int]:
    """`num` things by weights, one at least to each."""
    if num < len(weights):
        raise ValueError(f"{num} cannot be shared out between {len(weights)} devices.")
    exact = [num * weight / sum(weights) for weight in weights]
    found = [max(1, int(each)) for each in exact]
    while sum(found) < num:
        found[max(range(len(found)), key=lambda idx: exact[idx] - found[idx])] += 1
    while sum(found) > num:
        found[max((idx for idx in range(len(found)) if found[idx] > 1), key=lambda idx: found[idx] - exact[idx])] -= 1
    return found
