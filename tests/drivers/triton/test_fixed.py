"""Linears whose bits do not depend on the batch: right, and the same for a token wherever it stands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drivers.triton import definitions
from drivers.triton.matrix import QuantMatrix
from tests.drivers.interpreted import KERNELS
from tests.drivers.triton.kernel_rig import error

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")


def matrix_of(bits: int, group: int) -> QuantMatrix:
    """Random weights `[70, 128]`."""
    random = torch.Generator().manual_seed(1)
    values = torch.randint(0, 256, (70, 128 * bits // 8), dtype=torch.uint8, generator=random)
    scales = 0.01 * torch.rand(70, 128 // group if group else 1, generator=random)
    return QuantMatrix(values, scales.half() if group else scales, None, 128, group, bits)


def weight_of(kind: str) -> Tensor | QuantMatrix:
    """A matrix of that kind."""
    if kind == "float":
        return torch.randn(70, 100, generator=torch.Generator().manual_seed(2))
    return matrix_of(8, 0) if kind == "int8" else matrix_of(4, 32)


def tokens_of(weight: Tensor | QuantMatrix, num: int) -> Tensor:
    """Random tokens."""
    columns = weight.shape[1] if isinstance(weight, Tensor) else weight.columns
    return torch.randn(num, columns, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["float", "int8", "int4"])
@pytest.mark.parametrize("num_tokens", [1, 67])
def test_it_is_the_linear(kind: str, num_tokens: int) -> None:
    weight, bias = weight_of(kind), torch.randn(70, generator=torch.Generator().manual_seed(4))
    x = tokens_of(weight, num_tokens)
    plain = weight if isinstance(weight, Tensor) else definitions.dequantize(weight, torch.float32)

    expected = x.double() @ plain.double().t() + bias.double()

    assert error(KERNELS.fixed_linear(x, weight, bias), expected) < 1e-6
    assert error(definitions.fixed_linear(x, weight, bias), expected) < 1e-6


def test_sixteen_bits_are_summed_in_thirty_two() -> None:
    x, weight = tokens_of(weight_of("float"), 5).bfloat16(), torch.ones(70, 100, dtype=torch.bfloat16)

    assert error(KERNELS.fixed_linear(x, weight, None), x.double() @ weight.double().t()) < 1e-2


@pytest.mark.parametrize("kind", ["float", "int8", "int4"])
def test_a_token_has_the_same_bits_in_any_company_and_any_place(kind: str) -> None:
    weight = weight_of(kind)
    x = tokens_of(weight, 130)
    together = KERNELS.fixed_linear(x, weight, None)

    for first, end in ((0, 1), (63, 65), (17, 130), (129, 130)):
        assert torch.equal(KERNELS.fixed_linear(x[first:end], weight, None), together[first:end])


def test_rows_of_a_wider_tensor_are_taken_where_they_lie() -> None:
    weight = weight_of("float")
    wide = torch.randn(9, 300)

    assert torch.equal(KERNELS.fixed_linear(wide[:, 100:200], weight, None), KERNELS.fixed_linear(wide[:, 100:200].clone(), weight, None))
