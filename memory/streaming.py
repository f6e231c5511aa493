"""Which segments of a model larger than its room stay on the device, and which are streamed through slots.

    segments   | first | 1 | 2 | 3 | 4 | 5 | 6 | end |       n layers between the first and the last segment
    stays          x     x       x       x         x
    streamed                 x       x       x   x            spread evenly: one is fetched while those before it compute
    places     | first | 1 | 3 | 5 | end | slot | slot |

Invariants
1. The first and the last segment stay; each slot holds the largest streamed segment.
2. As few segments are streamed as the room allows, so a plan for more room never reads more bytes in a pass.
3. Beside what stays, and the slots, there is room for the pages of one context of `LEAST_TOKENS`; a device without is too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory.config import MemoryConfig
from memory.weights import packed

NUM_SLOTS = 2  # one is filled while another is read
KV_SHARE = 8  # pages get at least this part of the arena, or what the configuration says if that is less
LEAST_TOKENS = 256  # of a context that there is room for, or as many as the model takes


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """How a model lies on the device."""

    sizes: tuple[int, ...]  # of its segments
    streamed: tuple[int, ...]  # segments that do not stay, in order
    num_slots: int

    @property
    def kept(self) -> tuple[int, ...]:
        """Segments that stay, in order."""
        return tuple(idx for idx in range(len(self.sizes)) if idx not in self.streamed)

    @property
    def places(self) -> tuple[int, ...]:
        """Sizes of what lies in the arena: the segments that stay, then the slots."""
        slot_bytes = max((self.sizes[idx] for idx in self.streamed), default=0)
        return tuple(self.sizes[idx] for idx in self.kept) + (slot_bytes,) * self.num_slots

    @property
    def streamed_bytes(self) -> int:
        """Bytes that every forward pass reads again."""
        return sum(self.sizes[idx] for idx in self.streamed)

    def offsets(self, starts: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """From the starts of its places: the offset of each segment, -1 for a streamed one, and those of the slots."""
        of_kept = dict(zip(self.kept, starts, strict=False))
        return tuple(of_kept.get(idx, -1) for idx in range(len(self.sizes))), tuple(starts[len(of_kept) :])

    def starts(self, offsets: Sequence[int], slots: Sequence[int]) -> tuple[int, ...]:
        """The reverse of `offsets`."""
        return tuple(offset for offset in offsets if offset >= 0) + tuple(slots)


def whole(sizes: Sequence[int]) -> StreamPlan:
    """All segments stay."""
    return StreamPlan(tuple(sizes), (), 0)


def plan_of(sizes: Sequence[int], offsets: Sequence[int], num_slots: int) -> StreamPlan:
    """The plan by which a model lies where a load says."""
    return StreamPlan(tuple(sizes), tuple(idx for idx, offset in enumerate(offsets) if offset < 0), num_slots)


def plan_for(config: MemoryConfig, sizes: Sequence[int], kv_slabs: int = 0) -> StreamPlan:
    """How a model is to lie on a device of that configuration, alone there but for a least number of pages, of `kv_slabs` or more."""
    room_bytes = weight_room(config, kv_slabs)
    if not config.stream or len(sizes) < 3 or placed_bytes(sizes, config.granule_bytes) <= room_bytes:
        return whole(sizes)
    return fit(sizes, room_bytes, config.granule_bytes)


def weight_room(config: MemoryConfig, kv_slabs: int = 0) -> int:
    """Bytes of the arena that weights may take so that a least number of pages stays possible; whole slabs."""
    kv_bytes = min(config.stream_kv_bytes, config.device_bytes // KV_SHARE)
    num_slabs = config.device_bytes // config.slab_bytes - max(-(-kv_bytes // config.slab_bytes), kv_slabs)
    return max(num_slabs, 0) * config.slab_bytes


def kv_slabs_of(config: MemoryConfig, frame_bytes: Sequence[int], num_tokens: int) -> int:
    """Slabs that hold the pages of one context of so many tokens, with frames of these sizes."""
    num_pages = -(-num_tokens // config.page_tokens)
    return sum(-(-num_pages // max(config.slab_bytes // size, 1)) for size in frame_bytes)


def weight_slabs(config: MemoryConfig, plan: StreamPlan) -> int:
    """Slabs that a plan takes in one run."""
    return -(-placed_bytes(plan.places, config.granule_bytes) // config.slab_bytes)


def enough_bytes(config: MemoryConfig, sizes: Sequence[int], least_slabs: int, kv_slabs: int) -> int:
    """The smallest device on which a model that is planned beside `least_slabs` of pages, alone there, leaves them `kv_slabs`.

    A model that is streamed takes a part of what a device has more, so that what pages lack is not all that the device lacks.
    """

    def is_enough(num_slabs: int) -> bool:
        larger = replace(config, device_bytes=num_slabs * config.slab_bytes)
        return num_slabs - weight_slabs(larger, plan_for(larger, sizes, least_slabs)) >= kv_slabs

    low, high = 0, 2 * (weight_slabs(config, whole(sizes)) + kv_slabs + least_slabs + 1)  # enough without streaming
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high * config.slab_bytes


def fit(sizes: Sequence[int], room_bytes: int, granule_bytes: int) -> StreamPlan:
    """The plan that streams least within a room; where even the smallest is larger, the smallest (invariant 2)."""
    plan = whole(sizes)
    for num_streamed in range(len(sizes) - 1):
        plan = StreamPlan(tuple(sizes), spread(len(sizes) - 2, num_streamed), NUM_SLOTS if num_streamed else 0)
        if placed_bytes(plan.places, granule_bytes) <= room_bytes:
            break
    return plan


def placed_bytes(places: Sequence[int], granule_bytes: int) -> int:
    """Bytes of a run that holds all places."""
    return packed(places, granule_bytes)[-1] + places[-1]


def spread(num_layers: int, num_streamed: int) -> tuple[int, ...]:
    """Segments of so many layers, evenly spaced: the layers are segments 1 .. num_layers."""
    return tuple((idx + 1) * num_layers // num_streamed for idx in range(num_streamed))
