"""Norms and activations agree with their definitions, and those with the library."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from drivers.ops.calls import Activation
from drivers.triton import definitions
from tests.drivers.interpreted import KERNELS
from tests.drivers.triton.kernel_rig import error

TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCES))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@DTYPES
@pytest.mark.parametrize("columns", [96, 2500])
def test_rms_norm(dtype: torch.dtype, columns: int) -> None:
    x, weight = random(3, columns).to(dtype), random(columns, seed=1).to(dtype)

    found = KERNELS.rms_norm(x, weight, 1e-5, True)

    assert error(found, definitions.rms_norm(x, weight, 1e-5, True)) < TOLERANCES[dtype]
    assert error(found, F.rms_norm(x.double(), (columns,), weight.double() + 1, 1e-5)) < TOLERANCES[dtype]


@DTYPES
def test_add_rms_norm_adds_to_the_residual(dtype: torch.dtype) -> None:
    x, weight, residual = random(3, 300).to(dtype), random(300, seed=1).to(dtype), random(3, 300, seed=2).to(dtype)
    first, second = residual.clone(), residual.clone()

    found, expected = KERNELS.add_rms_norm(x, first, weight, (1e-5, False)), definitions.add_rms_norm(x, second, weight, (1e-5, False))

    assert error(found, expected) < TOLERANCES[dtype]
    assert error(first, second) < TOLERANCES[dtype]
    assert error(second, residual.double() + x.double()) < TOLERANCES[dtype]


@DTYPES
@pytest.mark.parametrize("function", list(Activation))
def test_act_mul(dtype: torch.dtype, function: Activation) -> None:
    gate_up = 3 * random(3, 2 * 100).to(dtype)

    found, expected = KERNELS.act_mul(gate_up, function), definitions.act_mul(gate_up, function)

    assert error(found, expected) < TOLERANCES[dtype]


def test_act_mul_of_large_gates_is_finite() -> None:
    gate_up = torch.tensor([[90.0, -90.0, 1e4, -1e4, 1.0, 1.0, 1.0, 1.0]])

    for function in Activation:
        assert torch.allclose(KERNELS.act_mul(gate_up, function), torch.tensor([[90.0, 0.0, 1e4, 0.0]]))
