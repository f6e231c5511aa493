"""A mixture of experts agrees with its definition, whatever tokens choose and however their weights are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from drivers.ops.calls import Activation, ExpertSettings
from drivers.ops.experts import experts
from drivers.triton import definitions
from drivers.triton.experts import PIECE, routed
from drivers.triton.layout import EXPERT_TILES, expert_tile
from drivers.triton.matrix import QuantMatrix, Stacks
from tests.drivers.interpreted import KERNELS
from tests.drivers.triton.kernel_rig import error

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
Form = tuple[int, int, bool]  # bits, group, has offsets
HIDDEN, INNER = 96, 80  # neither is a multiple of what is multiplied at once


@dataclass(frozen=True)
class Mixture:
    """Weights, and how many of them a token chooses."""

    router: Tensor
    stacks: Stacks
    settings: ExpertSettings

    def run(self, x: Tensor, lanes: Tensor | None = None) -> Tensor:
        """By the kernels."""
        return KERNELS.experts(x, self.router, self.stacks, self.settings, lanes)

    def defined(self, x: Tensor) -> Tensor:
        """By their definition, in the dtype of `x`."""
        return definitions.experts(x, self.router.to(x.dtype), self.stacks, self.settings, None)


def make(num: int, top_k: int, dtype: torch.dtype = torch.float32, form: Form | None = None) -> Mixture:
    """Random weights; of integers in some form, where there is one."""
    random = torch.Generator().manual_seed(num)
    router, *floats = (
        (torch.randn(shape, generator=random) / shape[-1] ** 0.5).to(dtype)
        for shape in ((num, HIDDEN), (num, 2 * INNER, HIDDEN), (num, HIDDEN, INNER))
    )
    stacks: Stacks = (floats[0], floats[1])
    if form is not None:
        stacks = (quantized(num * 2 * INNER, HIDDEN, form), quantized(num * HIDDEN, INNER, form))
    return Mixture(4 * router, stacks, ExpertSettings(num, top_k, True, Activation.SILU))


def quantized(rows: int, columns: int, form: Form) -> QuantMatrix:
    (bits, group, has_offsets), random = form, torch.Generator().manual_seed(rows)
    groups = columns // group if group else 1
    values = torch.randint(0, 256, (rows, columns * bits // 8), dtype=torch.uint8, generator=random)
    scales = (0.01 * torch.rand(rows, groups, generator=random)).to(torch.float16 if group else torch.float32)
    return QuantMatrix(values, scales, torch.rand(rows, groups, generator=random) if has_offsets else None, columns, group, bits)


def tokens(num: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(
    ("num", "top_k", "num_tokens", "tile"), [(8, 2, 1, 16), (5, 3, 20, 32), (3, 2, 70, 64), (20, 5, 3, 16), (6, 6, 7, 16), (1, 1, 3, 16)]
)
def test_experts_agree_with_their_definition(num: int, top_k: int, num_tokens: int, tile: int, dtype: torch.dtype) -> None:
    assert expert_tile(num_tokens * top_k, num) == tile
    x, mixture = tokens(num_tokens, dtype), make(num, top_k, dtype)

    assert error(mixture.run(x), mixture.defined(x)) < TOLERANCES[dtype]


@pytest.mark.parametrize("is_normalized", [True, False])
@pytest.mark.parametrize("function", list(Activation))
def test_they_agree_with_the_plain_definition_of_the_op(function: Activation, is_normalized: bool) -> None:
    x, mixture, how = tokens(11), make(7, 3), ExpertSettings(7, 3, is_normalized, function)
    gate_up, down = mixture.stacks
    assert isinstance(gate_up, Tensor)
    assert isinstance(down, Tensor)

    expected = experts(x, mixture.router, gate_up.__getitem__, down.__getitem__, how)

    assert error(replace(mixture, settings=how).run(x), expected) < 1e-6


@pytest.mark.parametrize("form", [(8, 0, False), (8, 0, True), (8, 16, True), (4, 16, False), (4, 16, True), (4, 0, False)])
def test_quantized_experts_agree_with_their_definition(form: Form) -> None:
    x, mixture = tokens(13), make(4, 2, form=form)

    assert error(mixture.run(x), mixture.defined(x)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_integers_are_multiplied_in_the_dtype_of_the_tokens(dtype: torch.dtype) -> None:
    x, mixture = tokens(13, dtype), make(4, 2, dtype, (4, 16, False))

    found = mixture.run(x)

    assert found.dtype == dtype
    assert error(found, mixture.defined(x.float())) < 1.5 * TOLERANCES[dtype]  # the interpreter does not round to bfloat16, it cuts off


def test_of_experts_that_are_as_likely_the_first_are_run() -> None:
    logits = torch.tensor([[0.0] * 6, [1.0, 2.0, 1.0, 2.0, 2.0, 0.0]])

    chosen, shares = routed(logits, make(6, 2).settings, None)

    assert chosen.tolist() == [0, 1, 1, 3]
    assert torch.allclose(shares, torch.full((4,), 0.5))


def test_lanes_that_nobody_uses_choose_nothing() -> None:
    x, mixture = tokens(6), make(5, 2)
    lanes = torch.tensor([[7, lane, lane % 3 != 1, 9] for lane in range(6)], dtype=torch.int32)
    used = [0, 2, 3, 5]

    chosen, _ = routed(x @ mixture.router.t(), mixture.settings, lanes)

    assert (chosen.view(6, 2) == 5).all(1).tolist() == [False, True, False, False, True, False]
    assert error(mixture.run(x, lanes)[used], mixture.defined(x)[used]) < 1e-6


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_an_expert_without_a_share_adds_nothing_whatever_it_computes() -> None:
    x, mixture = tokens(3).abs(), make(2, 2)
    mixture.router.copy_(torch.tensor([[4.0], [-4.0]]).expand(2, HIDDEN))  # the second share is too small for float32
    for stack in mixture.stacks:
        assert isinstance(stack, Tensor)
        stack[1] = float("inf")

    found = mixture.run(x)

    assert bool(found.isfinite().all())
    assert error(found, mixture.defined(x)) < 1e-6


def test_an_expert_that_all_tokens_choose_has_as_many_tiles_as_it_needs() -> None:
    x, mixture = tokens(200).abs(), make(5, 1)
    mixture.router.copy_(torch.eye(5)[3].unsqueeze(-1).expand(5, HIDDEN))

    assert len(x) > 3 * EXPERT_TILES[-1]
    assert set(routed(x @ mixture.router.t(), mixture.settings, None)[0].tolist()) == {3}
    assert error(mixture.run(x), mixture.defined(x)) < 1e-6


def test_more_choices_than_are_sorted_at_once_keep_their_tokens() -> None:
    x, mixture = tokens(PIECE // 8 + 2), make(8, 8)

    assert error(mixture.run(x), mixture.defined(x)) < 1e-6


def test_what_a_token_gets_does_not_depend_on_its_company() -> None:
    mixture, crowd = make(8, 2), tokens(24)

    together = mixture.run(crowd)

    assert expert_tile(24 * 2, 8) == expert_tile(2, 8)
    assert all(error(mixture.run(crowd[idx : idx + 1])[0], together[idx]) < 1e-6 for idx in (0, 11, 23))


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_what_is_not_finite_stays_with_its_token() -> None:
    mixture, x = make(8, 2), tokens(5)
    x[2, 7] = float("nan")

    found = mixture.run(x)

    assert bool(found[2].isnan().all())
    assert error(found[[0, 1, 3, 4]], mixture.defined(x[[0, 1, 3, 4]])) < 1e-6
