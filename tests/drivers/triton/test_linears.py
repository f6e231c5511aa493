"""Linears over 8- and 4-bit weights agree with their definition, and that with floats."""

from __future__ import annotations

import pytest
import torch

from drivers.triton import definitions
from drivers.triton.matrix import QuantMatrix
from tests.drivers.interpreted import KERNELS
from tests.drivers.triton.kernel_rig import error

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
ROWS, COLUMNS = 50, 192
Form = tuple[int, int, bool]  # bits, group, has offsets
FORMS = pytest.mark.parametrize("form", [(8, 0, False), (8, 0, True), (8, 32, False), (4, 32, False), (4, 64, True)])


def matrix_of(bits: int, group: int, has_offsets: bool) -> QuantMatrix:
    random = torch.Generator().manual_seed(bits + group)
    groups = COLUMNS // group if group else 1
    values = torch.randint(0, 256, (ROWS, COLUMNS * bits // 8), dtype=torch.uint8, generator=random)
    scales = torch.rand(ROWS, groups, generator=random).to(torch.float16 if group else torch.float32)
    offsets = torch.rand(ROWS, groups, generator=random) if has_offsets else None
    return QuantMatrix(values, scales, offsets, COLUMNS, group, bits)


@FORMS
@pytest.mark.parametrize(
    ("num_tokens", "dtype", "tolerance"), [(1, torch.bfloat16, 2e-2), (17, torch.float32, 1e-6), (70, torch.float16, 2e-3)]
)
def test_a_linear_agrees_with_its_definition(form: Form, num_tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    matrix, random = matrix_of(*form), torch.Generator().manual_seed(1)
    x, bias = torch.randn(num_tokens, COLUMNS, generator=random).to(dtype), torch.randn(ROWS, generator=random).to(dtype)

    assert error(KERNELS.quant_linear(x, matrix, bias), definitions.quant_linear(x, matrix, bias)) < tolerance


@FORMS
def test_dequantized_weights_and_rows_of_them_agree_with_their_definition(form: Form) -> None:
    matrix, index = matrix_of(*form), torch.tensor([7, 0, 7])

    whole = KERNELS.dequantize(matrix, torch.float32, None)

    assert torch.allclose(whole, definitions.dequantize(matrix, torch.float32))
    assert torch.equal(KERNELS.dequantize(matrix, torch.float32, index), whole[index])


def test_the_even_column_is_in_the_lower_half_of_a_byte_and_zero_is_in_the_middle() -> None:
    matrix = QuantMatrix(torch.tensor([[0x98]], dtype=torch.uint8), torch.tensor([[2.0]]), None, 2, 0, 4)

    assert definitions.dequantize(matrix, torch.float32).tolist() == [[0.0, 2.0]]
    assert KERNELS.dequantize(matrix, torch.float32, None).tolist() == [[0.0, 2.0]]
