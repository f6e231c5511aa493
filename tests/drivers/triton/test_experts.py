"""A mixture of experts agrees with its definition, whatever tokens choose and however their weights are stored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drivers.ops.calls import Activation, ExpertSettings
from drivers.ops.experts import experts
from drivers.triton import definitions
from drivers.triton.layout import EXPERT_TILES, expert_tile
from drivers.triton.matrix import QuantMatrix
from tests.drivers.interpreted import KERNELS
from tests.drivers.triton.kernel_rig import error

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
HIDDEN, INNER = 96, 80  # neither is a multiple of what is multiplied at once
Weights = tuple[Tensor, Tensor, Tensor]


def make(num: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Weights:
    """Router, gates and ups, downs."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((num, HIDDEN), (num, 2 * INNER, HIDDEN), (num, HIDDEN, INNER))
    router, gate_up, down = ((torch.randn(shape, generator=random) / shape[-1] ** 0.5).to(dtype) for shape in shapes)
    return 4 * router, gate_up, down


def tokens(num: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(num, HIDDEN, generator=torch.Generator().manual_seed(seed)).to(dtype)


def settings(num: int, top_k: int, function: Activation = Activation.SILU, is_normalized: bool = True) -> ExpertSettings:
    return ExpertSettings(num, top_k, is_normalized, function)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(
    ("num", "top_k", "num_tokens", "tile"), [(8, 2, 1, 16), (5, 3, 20, 32), (3, 2, 70, 64), (20, 5, 3, 16), (6, 6, 7, 16), (1, 1, 3, 16)]
)
def test_experts_agree_with_their_definition(num: int, top_k: int, num_tokens: int, tile: int, dtype: torch.dtype) -> None:
    assert expert_tile(num_tokens * top_k, num) == tile
    x, how = tokens(num_tokens, dtype), settings(num, top_k, is_normalized=num_tokens % 2 == 0)

    found, expected = KERNELS.experts(x, *make(num, dtype), how), definitions.experts(x, *make(num, dtype), how)

    assert error(found, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("function", list(Activation))
def test_they_agree_with_the_plain_definition_of_the_op(function: Activation) -> None:
    x, (router, gate_up, down), how = tokens(11), make(7), settings(7, 3, function)

    assert error(KERNELS.experts(x, router, gate_up, down, how), experts(x, router, gate_up.__getitem__, down.__getitem__, how)) < 1e-6


@pytest.mark.parametrize("form", [(8, 0, False), (8, 0, True), (8, 16, True), (4, 16, False), (4, 16, True), (4, 0, False)])
def test_quantized_experts_agree_with_their_definition(form: tuple[int, int, bool]) -> None:
    x, how, (router, *_floats) = tokens(13), settings(4, 2), make(4)
    stacks = [quantized(rows, columns, form) for rows, columns in ((4 * 2 * INNER, HIDDEN), (4 * HIDDEN, INNER))]

    assert error(KERNELS.experts(x, router, *stacks, how), definitions.experts(x, router, *stacks, how)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_integers_are_multiplied_in_the_dtype_of_the_tokens(dtype: torch.dtype) -> None:
    x, how, (router, *_floats) = tokens(13, dtype), settings(4, 2), make(4, dtype)
    stacks = [quantized(rows, columns, (4, 16, False)) for rows, columns in ((4 * 2 * INNER, HIDDEN), (4 * HIDDEN, INNER))]

    found, exact = KERNELS.experts(x, router, *stacks, how), definitions.experts(x.float(), router.float(), *stacks, how)

    assert found.dtype == dtype
    assert error(found, exact) < 1.5 * TOLERANCES[dtype]  # the interpreter does not round to bfloat16, it cuts off


def quantized(rows: int, columns: int, form: tuple[int, int, bool]) -> QuantMatrix:
    (bits, group, has_offsets), random = form, torch.Generator().manual_seed(rows)
    groups = columns // group if group else 1
    values = torch.randint(0, 256, (rows, columns * bits // 8), dtype=torch.uint8, generator=random)
    scales = (0.01 * torch.rand(rows, groups, generator=random)).to(torch.float16 if group else torch.float32)
    return QuantMatrix(values, scales, torch.rand(rows, groups, generator=random) if has_offsets else None, columns, group, bits)


def test_of_experts_that_are_as_likely_the_first_are_run() -> None:
    _router, gate_up, down = make(6)
    x, how = tokens(4), settings(6, 2)

    found = KERNELS.experts(x, torch.zeros(6, HIDDEN), gate_up, down, how)

    halves = [definitions.experts(x, torch.ones(1, HIDDEN), gate_up[idx, None], down[idx, None], settings(1, 1)) for idx in (0, 1)]
    assert error(found, (halves[0] + halves[1]) / 2) < 1e-6


def test_an_expert_that_all_tokens_choose_has_as_many_tiles_as_it_needs() -> None:
    num_tokens, (router, gate_up, down) = 200, make(5)
    x = tokens(num_tokens).abs()
    router = torch.zeros_like(router)
    router[3] = 1.0

    found = KERNELS.experts(x, router, gate_up, down, settings(5, 1))

    assert num_tokens > 3 * EXPERT_TILES[-1]
    assert error(found, definitions.experts(x, router, gate_up, down, settings(5, 1))) < 1e-6


def test_more_choices_than_are_sorted_at_once_keep_their_tokens() -> None:
    x, weights, how = tokens(130), make(8), settings(8, 8)

    assert 130 * 8 > 1024
    assert error(KERNELS.experts(x, *weights, how), definitions.experts(x, *weights, how)) < 1e-6


def test_what_a_token_gets_does_not_depend_on_its_company() -> None:
    weights, how, crowd = make(8), settings(8, 2), tokens(24)

    together = KERNELS.experts(crowd, *weights, how)

    assert expert_tile(24 * 2, 8) == expert_tile(2, 8)
    assert all(error(KERNELS.experts(crowd[idx : idx + 1], *weights, how)[0], together[idx]) < 1e-6 for idx in (0, 11, 23))


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_what_is_not_finite_stays_with_its_token() -> None:
    weights, how, x = make(8), settings(8, 2), tokens(5)
    x[2, 7] = float("nan")

    found = KERNELS.experts(x, *weights, how)

    assert bool(found[2].isnan().all())
    assert error(found[[0, 1, 3, 4]], definitions.experts(x[[0, 1, 3, 4]], *weights, how)) < 1e-6
