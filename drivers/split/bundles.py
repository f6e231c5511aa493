"""Segments of several devices in bundles, which is what the front sees as segments: each holds some of every device's.

    bundle         0                        1                  2
    device 0   | embedding |           | layer 0 | layer 1 | end  |         in the order of a forward pass
    device 1   | layer 2 | layer 3 |   | layer 4 |         |      |

A bundle is whole granules, as many as the device needs that needs most; the rest of the others' bytes stays empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drivers.split.shares import Shares

Places = tuple[tuple[int, int], ...]  # (which of a device's segments, byte at which it begins in the device's part of the bundle)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Some segments of each device."""

    num_granules: int
    places: tuple[Places, ...]  # by device
    used_bytes: tuple[int, ...]  # by device; nothing lies behind


def packed(sizes: Sequence[Sequence[int]], shares: Shares) -> tuple[Bundle, ...]:
    """Bundles of the segments of each device, given by size in bytes, in order. No bundle is larger than the largest segment asks for."""
    largest = max(-(-size // granule) for mine, granule in zip(sizes, shares.granule_bytes, strict=True) for size in mine)
    taken, bundles = [0] * len(sizes), list[Bundle]()
    while any(done < len(mine) for done, mine in zip(taken, sizes, strict=True)):
        places: list[Places] = []
        used: list[int] = []
        for device, mine in enumerate(sizes):
            found, end = list[tuple[int, int]](), 0
            while taken[device] < len(mine) and end + mine[taken[device]] <= largest * shares.granule_bytes[device]:
                found.append((taken[device], end))
                end += mine[taken[device]]
                taken[device] += 1
            places.append(tuple(found))
            used.append(end)
        bundles.append(Bundle(shares.num_granules(used), tuple(places), tuple(used)))
    return tuple(bundles)
