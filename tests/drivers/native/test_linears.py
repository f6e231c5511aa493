from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from drivers.models.storage import Kind, Storage
from drivers.native.isa import levels
from drivers.native.linears import NativeLinears, Panels, empty_panels, native_linears

STORAGES = [
    Storage(Kind.FLOAT32),
    Storage(Kind.BFLOAT16),
    Storage(Kind.INT8),
    Storage(Kind.INT8, 64),
    Storage(Kind.INT8, 32, has_offsets=True),
    Storage(Kind.INT4),
    Storage(Kind.INT4, 32),
    Storage(Kind.INT4, 128),
    Storage(Kind.INT4, 64, has_offsets=True),
]
SOME = [Storage(Kind.BFLOAT16), Storage(Kind.INT8), Storage(Kind.INT4, 32)]
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 17, 25, 49, 70)
WIDE = {Kind.FLOAT32: 1100, Kind.BFLOAT16: 2304, Kind.INT8: 4608, Kind.INT4: 8704}  # more steps than one block of columns has

pytestmark = pytest.mark.parametrize("level", levels())


def library(level: str) -> NativeLinears:
    found = native_linears(level)
    assert found is not None
    return found


def packed(lib: NativeLinears, storage: Storage, rows: int, columns: int) -> Panels:
    random = torch.Generator().manual_seed(rows * columns)
    panels = empty_panels(storage, rows, columns)
    if not storage.has_offsets:
        lib.pack(panels, torch.randn(rows, columns, generator=random) / columns**0.5)
        return panels
    groups = columns // storage.group
    codes = torch.randint(0, 256 if storage.kind is Kind.INT8 else 16, (rows, columns), generator=random, dtype=torch.uint8)
    scales = (torch.rand(rows, groups, generator=random) / columns).half().float()
    lib.pack_codes(panels, codes, scales, torch.rand(rows, groups, generator=random) * scales * 16)
    return panels


def linear(lib: NativeLinears, panels: Panels, x: Tensor, bias: Tensor | None = None) -> Tensor:
    out = torch.full((len(x), panels.rows), 7e7)
    lib.linear(panels, lib.prepare(panels, x), out, bias)
    return out


def as_prepared(x: Tensor, storage: Storage) -> Tensor:
    """The inputs that a linear of this form sees, as float64."""
    if storage.kind is Kind.BFLOAT16:
        return x.bfloat16().double()
    if not storage.is_quantized:
        return x.double()
    magnitude = x.abs().amax(1, keepdim=True)
    steps = torch.full_like(magnitude, 127.0) / magnitude
    return (x * steps).round().double() * (magnitude / 127.0).double()


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.name)
@pytest.mark.parametrize(("rows", "columns"), [(33, 384), (1, 128), (16, 256), (95, 640)])
def test_outputs_are_those_of_the_definition(level: str, storage: Storage, rows: int, columns: int) -> None:
    lib = library(level)
    panels = packed(lib, storage, rows, columns)
    x, bias = torch.randn(70, columns, generator=torch.Generator().manual_seed(1)), torch.randn(rows)
    weight, seen = lib.unpack(panels).double(), as_prepared(x, storage)
    expected, size = seen @ weight.T + bias.double(), seen.abs() @ weight.abs().T + bias.abs().double()

    for num_tokens in TOKENS:
        error = (linear(lib, panels, x[:num_tokens], bias).double() - expected[:num_tokens]).abs()

        assert (error <= 2e-6 * size[:num_tokens]).all()  # sums in float32, one after the other; measured: 4e-7


@pytest.mark.parametrize(
    ("kind", "columns"), [(Kind.FLOAT32, 37), (Kind.BFLOAT16, 37), (Kind.BFLOAT16, 66), (Kind.INT8, 37), (Kind.INT4, 43), (Kind.INT8, 1)]
)
def test_columns_may_be_any_number(level: str, kind: Kind, columns: int) -> None:
    lib, storage = library(level), Storage(kind)
    panels = packed(lib, storage, 19, columns)
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(2))
    weight, seen = lib.unpack(panels).double(), as_prepared(x, storage)

    error = (linear(lib, panels, x).double() - seen @ weight.T).abs()

    assert (error <= 2e-6 * (seen.abs() @ weight.abs().T)).all()


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.name)
def test_the_bits_of_a_token_do_not_depend_on_its_neighbours(level: str, storage: Storage) -> None:
    lib = library(level)
    panels = packed(lib, storage, 47, WIDE[storage.kind])
    x = torch.randn(70, panels.columns, generator=torch.Generator().manual_seed(3))
    alone = torch.cat([linear(lib, panels, row) for row in x.split(1)])

    for num_tokens in TOKENS:
        assert torch.equal(linear(lib, panels, x[:num_tokens]), alone[:num_tokens])
        assert torch.equal(linear(lib, panels, x[70 - num_tokens :]), alone[70 - num_tokens :])


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.name)
def test_the_bits_do_not_depend_on_how_panels_are_shared_out(level: str, storage: Storage) -> None:
    lib = library(level)
    panels = packed(lib, storage, 100, 128)
    for num_tokens in (1, 5, 14):
        x = torch.randn(num_tokens, 128, generator=torch.Generator().manual_seed(4))
        prepared, whole = lib.prepare(panels, x), linear(lib, panels, x)
        for cuts in ((0, 7), (0, 1, 7), (0, 3, 4, 7), (0, 2, 5, 5, 7)):
            parts = torch.zeros(num_tokens, 100)
            for span in pairwise(cuts):
                lib.linear_of(panels, span, prepared, parts)

            assert torch.equal(parts, whole)


@pytest.mark.parametrize("storage", SOME, ids=lambda storage: storage.name)
def test_results_may_be_added_and_written_beside_others(level: str, storage: Storage) -> None:
    lib = library(level)
    panels, bias = packed(lib, storage, 35, 96), torch.randn(35)
    wide = torch.randn(9, 200, generator=torch.Generator().manual_seed(5))
    x, out = wide[:, 3:99], wide.clone()[:, 100:135]
    before, others = out.clone(), wide[:, 135:].clone()

    lib.linear(panels, lib.prepare(panels, x), out, bias, adds=True)

    assert torch.equal(out, before + linear(lib, panels, x.contiguous(), bias))
    assert torch.equal(wide[:, 135:], others)


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.name)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_not_finite_poisons_only_itself(level: str, storage: Storage, poison: float) -> None:
    lib = library(level)
    panels = packed(lib, storage, 20, 256)
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(6))
    clean = linear(lib, panels, x)
    x[4, 77] = poison

    out = linear(lib, panels, x)

    assert not out[4].isfinite().any()
    assert torch.equal(out[[0, 1, 2, 3, 5, 6, 7, 8]], clean[[0, 1, 2, 3, 5, 6, 7, 8]])


@pytest.mark.parametrize("kind", WIDE)
def test_what_lies_behind_a_token_is_not_looked_at(level: str, kind: Kind) -> None:
    lib = library(level)
    panels, x = packed(lib, Storage(kind), 20, 37), torch.randn(3, 37, generator=torch.Generator().manual_seed(8))
    alone = linear(lib, panels, x[:1].clone())
    x[1] = float("nan")

    assert torch.equal(linear(lib, panels, x)[:1], alone)


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.name)
def test_a_token_of_zeros_gives_the_bias_exactly(level: str, storage: Storage) -> None:
    lib = library(level)
    panels, bias = packed(lib, storage, 20, 128), torch.randn(20)

    assert torch.equal(linear(lib, panels, torch.zeros(3, 128), bias), bias.expand(3, 20))
    assert torch.equal(linear(lib, panels, torch.full((1, 128), 1e-42), bias), bias.expand(1, 20))


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: storage.name)
@pytest.mark.parametrize("size", [2.0**100, 2.0**-60])
def test_huge_and_tiny_tokens_keep_their_proportions(level: str, storage: Storage, size: float) -> None:
    lib = library(level)
    panels = packed(lib, storage, 20, 128)
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(7))

    assert torch.allclose(linear(lib, panels, x * size), linear(lib, panels, x) * size, rtol=1e-5, atol=1e-5 * size)


def test_integers_saturate_nowhere(level: str) -> None:
    lib = library(level)
    for kind, largest in ((Kind.INT8, 255), (Kind.INT4, 15)):
        panels = empty_panels(Storage(kind, 128, has_offsets=True), 16, 256)
        lib.pack_codes(panels, torch.full((16, 256), largest, dtype=torch.uint8), torch.ones(16, 2), torch.zeros(16, 2))

        out = linear(lib, panels, torch.cat([torch.ones(1, 256), -torch.ones(1, 256)]))

        expected = 256.0 * largest * torch.tensor([[1.0], [-1.0]]).expand(2, 16)
        assert torch.allclose(out, expected, rtol=1e-6, atol=0)


def test_no_tokens_are_no_work(level: str) -> None:
    lib = library(level)

    assert linear(lib, packed(lib, Storage(Kind.INT8), 16, 64), torch.empty(0, 64)).shape == (0, 16)
