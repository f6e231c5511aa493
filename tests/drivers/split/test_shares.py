"""How granules and layers are shared out, and what that makes of frames and bundles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.split.bundles import packed
from drivers.split.shares import Shares

WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=4)
SIZES = st.lists(st.integers(1, 200).map(lambda units: 64 * units), max_size=12)


@given(WEIGHTS, st.integers(4, 400))
def test_a_granule_is_shared_out_whole(weights: list[int], units: int) -> None:
    shares = Shares.of(weights, 64 * units)
    assert shares.total_bytes == 64 * units
    assert all(granule >= 64 and granule % 64 == 0 for granule in shares.granule_bytes)


@given(WEIGHTS)
def test_shares_follow_weights_within_one_unit_where_nobody_is_owed_the_least(weights: list[int]) -> None:
    shares = Shares.of(weights, 64 * 10_000)
    for granule, weight in zip(shares.granule_bytes, weights, strict=True):
        assert abs(granule / 64 - 10_000 * weight / sum(weights)) <= len(weights)


@given(WEIGHTS, st.integers(4, 100))
def test_every_layer_is_somewhere_once_in_order(weights: list[int], num_layers: int) -> None:
    ranges = Shares.of(weights, 4096).layers(num_layers)
    assert [layer for each in ranges for layer in each] == list(range(num_layers))
    assert all(ranges)


def test_layers_go_by_bytes() -> None:
    assert [len(each) for each in Shares((1024, 3072)).layers(32)] == [8, 24]
    assert [len(each) for each in Shares((64, 4032)).layers(6)] == [1, 5]


def test_more_devices_than_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 cannot be shared out between 3"):
        Shares((64, 64, 64)).layers(2)


def test_a_frame_is_as_long_as_the_device_needs_that_needs_most() -> None:
    shares = Shares((1024, 3072))
    assert shares.num_granules((4096, 4096)) == 4
    assert shares.num_granules((1024, 3073)) == 2
    assert shares.spans(3, 2) == ((3072, 2048), (9216, 6144))


def test_bytes_of_granules_are_cut_device_by_device() -> None:
    parts = list(Shares((64, 192)).cut(memoryview(bytes(range(256)) * 2)))
    assert [len(part) for part in parts] == [128, 384]
    assert bytes(parts[1][:2]) == bytes((128, 129))


@given(st.lists(SIZES, min_size=2, max_size=2).filter(any), st.tuples(st.integers(1, 8), st.integers(1, 8)))
def test_bundles_hold_every_segment_once_in_order_without_overlap(sizes: list[list[int]], units: tuple[int, int]) -> None:
    shares = Shares((64 * units[0], 64 * units[1]))
    bundles = packed(sizes, shares)
    for device, mine in enumerate(sizes):
        assert [idx for bundle in bundles for idx, _start in bundle.places[device]] == list(range(len(mine)))
        for bundle in bundles:
            end = 0
            for idx, start in bundle.places[device]:
                assert start == end
                end += mine[idx]
            assert end == bundle.used_bytes[device] <= bundle.num_granules * shares.granule_bytes[device]


def test_bundles_fill_what_the_largest_segment_leaves() -> None:
    shares = Shares((1024, 1024))
    bundles = packed([[4096, 1024, 1024, 512], [1024, 1024, 1024, 1024, 1024]], shares)
    assert [bundle.num_granules for bundle in bundles] == [4, 3]
    assert [len(bundle.places[1]) for bundle in bundles] == [4, 1]
