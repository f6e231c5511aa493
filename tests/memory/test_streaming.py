"""Which segments of a large model stay on the device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.config import MemoryConfig
from memory.streaming import (
    NUM_SLOTS,
    StreamPlan,
    enough_bytes,
    fit,
    kv_slabs_of,
    placed_bytes,
    plan_for,
    plan_of,
    spread,
    weight_room,
    weight_slabs,
    whole,
)

GRANULE = 512


def test_a_model_that_fits_stays_whole() -> None:
    sizes = (4096, 1024, 1024, 1024, 512)
    assert fit(sizes, sum(sizes), GRANULE) == whole(sizes)
    assert whole(sizes).places == sizes
    assert whole(sizes).offsets([0, 1, 2, 3, 4]) == ((0, 1, 2, 3, 4), ())


def test_streamed_layers_are_spread_and_end_with_the_last() -> None:
    assert spread(8, 4) == (2, 4, 6, 8)
    assert spread(7, 3) == (2, 4, 7)
    assert spread(5, 5) == (1, 2, 3, 4, 5)
    assert spread(5, 0) == ()


def test_as_few_as_possible_are_streamed() -> None:
    sizes = (4096, *([1024] * 10), 512)
    plan = fit(sizes, 4096 + 512 + 8 * 1024, GRANULE)  # six layers and two slots
    assert len(plan.streamed) == 4
    assert plan.places == (4096, *([1024] * 6), 512, 1024, 1024)
    assert plan.streamed_bytes == 4 * 1024


def test_the_smallest_plan_keeps_the_ends_and_the_slots() -> None:
    sizes = (4096, *([1024] * 10), 512)
    assert fit(sizes, 0, GRANULE).places == (4096, 512, 1024, 1024)


def test_pages_keep_a_part_of_the_arena() -> None:
    config = MemoryConfig(device_bytes=64 << 20, slab_bytes=1 << 20, stream_kv_bytes=3 << 20)
    assert weight_room(config) == 61 << 20
    small = MemoryConfig(device_bytes=8 << 20, slab_bytes=1 << 20, stream_kv_bytes=1 << 30)
    assert weight_room(small) == 7 << 20


@given(
    sizes=st.lists(st.integers(1, 1 << 16), min_size=3, max_size=40),
    room=st.integers(0, 1 << 22),
)
def test_a_plan_fits_or_is_the_smallest(sizes: list[int], room: int) -> None:
    plan = fit(sizes, room, GRANULE)
    assert set(plan.kept) | set(plan.streamed) == set(range(len(sizes)))
    assert {0, len(sizes) - 1} <= set(plan.kept)  # invariant 1
    assert plan.num_slots == (NUM_SLOTS if plan.streamed else 0)
    assert all(size <= plan.places[-1] for idx, size in enumerate(sizes) if idx in plan.streamed)  # invariant 1
    assert placed_bytes(plan.places, GRANULE) <= room or len(plan.streamed) == len(sizes) - 2
    more = fit(sizes, room + 4096, GRANULE)
    assert len(more.streamed) <= len(plan.streamed)  # invariant 2


@given(num_layers=st.integers(1, 60), num_streamed=st.integers(0, 60), num_slots=st.integers(1, 3))
def test_offsets_and_starts_are_each_others_reverse(num_layers: int, num_streamed: int, num_slots: int) -> None:
    sizes = tuple(range(100, 102 + num_layers))
    plan = StreamPlan(sizes, spread(num_layers, min(num_streamed, num_layers)), num_slots)
    starts = tuple(range(0, 7 * len(plan.places), 7))
    offsets, slots = plan.offsets(starts)
    assert plan.starts(offsets, slots) == starts
    assert plan_of(sizes, offsets, len(slots)) == plan


@pytest.mark.parametrize("num_layers", range(1, 12))
def test_spread_names_every_layer_at_most_once(num_layers: int) -> None:
    for num_streamed in range(num_layers + 1):
        chosen = spread(num_layers, num_streamed)
        assert len(set(chosen)) == num_streamed
        assert all(1 <= idx <= num_layers for idx in chosen)


MIB = 1 << 20
SLAB = 4 * MIB
LAYERS = (4 * MIB, *([3 * MIB] * 6), 4096)  # about 22 MiB, as the shipped model is


def device_of(num_slabs: int) -> MemoryConfig:
    return MemoryConfig(device_bytes=num_slabs * SLAB, slab_bytes=SLAB, granule_bytes=4096)


def test_pages_of_a_context_take_whole_slabs_of_each_group() -> None:
    assert kv_slabs_of(device_of(1), (96 << 10, 8 << 10), 256) == 2
    assert kv_slabs_of(device_of(1), (MIB,), 16 * 16) == 4
    assert kv_slabs_of(device_of(1), (MIB,), 16 * 16 + 1) == 5


@given(num_slabs=st.integers(1, 12), kv_slabs=st.integers(1, 3))
def test_a_plan_leaves_the_pages_of_a_context_or_is_the_smallest(num_slabs: int, kv_slabs: int) -> None:
    config = device_of(num_slabs)
    plan = plan_for(config, LAYERS, kv_slabs)
    is_smallest = len(plan.streamed) == len(LAYERS) - 2
    assert num_slabs - weight_slabs(config, plan) >= kv_slabs or is_smallest  # invariant 3


@given(kv_slabs=st.integers(1, 40), least_slabs=st.integers(1, 3))
def test_the_smallest_device_that_is_enough_is_the_smallest(kv_slabs: int, least_slabs: int) -> None:
    enough = enough_bytes(device_of(1), LAYERS, least_slabs, kv_slabs) // SLAB

    left = [size - weight_slabs(device_of(size), plan_for(device_of(size), LAYERS, least_slabs)) for size in (enough - 1, enough)]

    assert left[0] < kv_slabs <= left[1]
