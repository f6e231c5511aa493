"""Where values, scales and offsets lie, in rows and in panels, and that what is written there is what is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from drivers.errors import ModelCorrupt
from drivers.models.panels import Region
from drivers.models.storage import ALIGN_BYTES, BITS, Kind, Storage, places_of
from drivers.models.tiles import Tile, convert, floats, rounded
from drivers.models.weight import Weight, view_part

FORMS = [
    Storage(Kind.FLOAT32),
    Storage(Kind.BFLOAT16),
    Storage(Kind.INT8),
    Storage(Kind.INT8, 32),
    Storage(Kind.INT8, 0, has_offsets=True),
    Storage(Kind.INT4),
    Storage(Kind.INT4, 32),
    Storage(Kind.INT4, 64, has_offsets=True),
]
SHAPES = [(37, 128), (16, 64), (5, 192), (3, 32, 64)]
Array = np.ndarray


def random_tile(storage: Storage, rows: int, columns: int, seed: int = 1) -> Tile:
    """Rows of random numbers of a form."""
    random = np.random.default_rng(seed)
    if not storage.is_quantized:
        return Tile(storage.kind, rounded(random.standard_normal((rows, columns)).astype(np.float32), storage.kind))
    groups = storage.num_groups(columns)
    values = random.integers(0, 256 if storage.kind is Kind.INT8 else 16, (rows, columns)).astype(np.uint8)
    scales = random.uniform(0.01, 0.1, (rows, groups)).astype(np.float16 if storage.group else np.float32)
    offsets = random.standard_normal((rows, groups)).astype(np.float32) if storage.has_offsets else None
    return Tile(storage.kind, values, scales, offsets, storage.group)


def written(storage: Storage, shape: tuple[int, ...]) -> tuple[Weight | torch.Tensor, Array]:
    """A part among rubbish, written a panel at a time from the end, and what it should be."""
    places = places_of(storage, shape)
    memory = np.full(places.size_bytes, 0xA5, np.uint8)
    region, truth = Region(places, memory), []
    for matrix in range(places.num_matrices):
        tile = random_tile(storage, shape[-2], shape[-1], matrix)
        truth.append(floats(tile))
        for row in reversed(range(0, shape[-2], 16)):
            region.put(tile.part(row, min(row + 16, shape[-2])), matrix, row)
    return view_part(torch.from_numpy(memory), storage, shape), np.stack(truth).reshape(shape)


@pytest.mark.parametrize("is_panels", [False, True], ids=["rows", "panels"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_what_is_put_into_a_part_is_what_it_gives_back(form: Storage, shape: tuple[int, ...], is_panels: bool) -> None:
    part, truth = written(replace(form, is_panels=is_panels), shape)
    found = part.dequantize(torch.float32) if isinstance(part, Weight) else part.float()
    np.testing.assert_array_equal(found.numpy(), truth)
    if isinstance(part, Weight) and len(shape) == 2:
        chosen = torch.tensor([4, 0, 3, 4])
        assert torch.equal(part.rows(chosen, torch.bfloat16), part.dequantize(torch.bfloat16)[chosen])


def test_places_are_aligned_and_as_small_as_they_can_be() -> None:
    places = places_of(Storage(Kind.INT4, 64, has_offsets=True, is_panels=True), (2, 20, 192))
    assert (places.rows, places.columns, places.groups) == (32, 192, 3)
    assert places.values_bytes == 32 * 192 // 2
    assert places.scales_start == 2 * places.values_bytes
    assert (places.scales_bytes, places.offsets_bytes) == (32 * 3 * 2, 32 * 3 * 4)
    assert places.offsets_start % ALIGN_BYTES == places.scales_start % ALIGN_BYTES == 0
    assert places.size_bytes == places.offsets_start + 2 * places.offsets_bytes
    assert places_of(Storage(Kind.FLOAT32), (7,)).size_bytes == 28


def test_panels_hold_one_column_of_sixteen_rows_side_by_side() -> None:
    storage = Storage(Kind.INT4, 32, is_panels=True)
    memory = np.zeros(places_of(storage, (32, 64)).size_bytes, np.uint8)
    values = np.zeros((32, 64), np.uint8)
    values[16 + 3, 8 * 5 + 2], values[16 + 3, 8 * 5 + 4 + 2] = 9, 6  # panel 1, unit 5, row 3, byte 2: lower and upper half
    Region(places_of(storage, (32, 64)), memory).put(Tile(Kind.INT4, values, np.zeros((32, 2), np.float16), None, 32), 0, 0)
    assert memory.nonzero()[0].tolist() == [((1 * 8 + 5) * 16 + 3) * 4 + 2]
    assert memory.max() == 9 | 6 << 4


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_rows_that_fill_the_last_panel_up_are_zeros(form: Storage) -> None:
    part, _ = written(replace(form, is_panels=True), (5, 192))
    assert isinstance(part, Weight)
    whole = Weight(part.storage, (16, 192), part.bytes)
    assert not whole.dequantize(torch.float32)[5:].any()
    values = part.bytes[: part.places.values_bytes].view(-1, 16, 4)
    assert not values[:, 5:].any()


@pytest.mark.parametrize("kind", [Kind.BFLOAT16, Kind.FLOAT16])
def test_floats_are_rounded_as_torch_rounds_them(kind: Kind) -> None:
    random = np.random.default_rng(0)
    values = (random.standard_normal(4000) * 10.0 ** random.uniform(-12, 6, 4000)).astype(np.float32)
    values[:4] = np.inf, -np.inf, 3.4e38, 1.0 + 2.0**-8  # the last lies in the middle
    dtype = torch.bfloat16 if kind is Kind.BFLOAT16 else torch.float16
    expected = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(rounded(values, kind).view(np.uint16), expected)
    assert np.isnan(floats(Tile(kind, rounded(np.array([[np.nan]], np.float32), kind)))).all()


@pytest.mark.parametrize(("form", "bound"), [(Storage(Kind.INT8), 1 / 254), (Storage(Kind.INT4, 32), 1 / 8)])
def test_quantized_values_are_within_half_a_step_of_the_largest(form: Storage, bound: float) -> None:
    values = np.random.default_rng(2).standard_normal((64, 128)).astype(np.float32)
    values[3], values[5, 40:50] = 0.0, 0.0
    found = floats(convert(Tile(Kind.FLOAT32, values), form, "w"))
    groups = form.num_groups(128)
    largest = np.abs(values.reshape(64, groups, -1)).max(-1, keepdims=True)
    assert (np.abs(found - values).reshape(64, groups, -1) <= largest * bound * 1.01).mean() > 0.98
    assert (found[3] == 0).all()


def test_four_bits_choose_scales_that_are_better_than_the_plain_ones() -> None:
    values = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    found = floats(convert(Tile(Kind.FLOAT32, values), Storage(Kind.INT4, 32), "w"))
    grouped = values.reshape(64, 8, 32)
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(-1)[..., None], -1)
    step = largest / -8
    plain = np.clip(np.rint(grouped / step), -8, 7) * step
    assert np.square(found - values).mean() < 0.95 * np.square(plain.reshape(64, 256) - values).mean()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_quantized(bad: float) -> None:
    values = np.ones((16, 64), np.float32)
    values[3, 7] = bad
    with pytest.raises(ModelCorrupt, match="w has values that are not finite"):
        convert(Tile(Kind.FLOAT32, values), Storage(Kind.INT8), "w")


@pytest.mark.parametrize("kind", [Kind.INT4, Kind.INT8])
@pytest.mark.parametrize("group", [32, 64])
def test_symmetric_integers_among_others_with_offsets_stay_what_they_are(kind: Kind, group: int) -> None:
    random = np.random.default_rng(4)
    values = random.integers(0, 1 << BITS[kind], (3, 128)).astype(np.uint8)
    tile = Tile(kind, values, random.uniform(0.5, 1, (3, 128 // group)).astype(np.float16), None, group)
    found = convert(tile, Storage(kind, 32, has_offsets=True), "w")
    assert found.offsets is not None
    np.testing.assert_allclose(floats(found), floats(tile), rtol=1e-6, atol=1e-5)
