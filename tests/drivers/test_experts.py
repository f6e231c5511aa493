"""Experts: the faster implementation against the definition, and a token alone against a token in company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drivers.ops.calls import Activation, ExpertSettings
from drivers.ops.experts import experts, grouped_experts, route


def weights(num_experts: int, hidden: int = 24, inner: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """A router, and gate and up, and down of each expert."""
    random = torch.Generator().manual_seed(num_experts)
    shapes = ((num_experts, hidden), (num_experts, 2 * inner, hidden), (num_experts, hidden, inner))
    router, gate_up, down = (torch.randn(shape, generator=random) for shape in shapes)
    return router, gate_up, down


def tokens(num: int, seed: int = 0) -> Tensor:
    """Hidden states."""
    return torch.randn(num, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("is_normalized", [True, False])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_experts_in_groups_compute_what_the_definition_does(top_k: int, is_normalized: bool) -> None:
    router, gate_up, down = weights(8)
    settings = ExpertSettings(8, top_k, is_normalized, Activation.SILU)
    x = tokens(33)
    plain = experts(x, router, gate_up.__getitem__, down.__getitem__, settings)
    grouped = grouped_experts(x, router, gate_up.__getitem__, down.__getitem__, settings)
    torch.testing.assert_close(grouped, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("is_normalized", [True, False])
def test_the_likeliest_experts_have_their_share_of_the_softmax(is_normalized: bool) -> None:
    router = weights(8)[0]
    x = tokens(20)
    shares = route(x, router, ExpertSettings(8, 2, is_normalized, Activation.SILU))
    mass = (x @ router.T).softmax(-1)
    for row, all_of_it in zip(shares, mass, strict=True):
        chosen = row.nonzero().flatten()
        assert set(chosen.tolist()) == set(all_of_it.topk(2).indices.tolist())
        expected = all_of_it[chosen] / (all_of_it[chosen].sum() if is_normalized else 1.0)
        torch.testing.assert_close(row[chosen], expected)


def test_of_experts_that_are_as_likely_the_first_are_run() -> None:
    router = torch.ones(6, 24)
    shares = route(torch.ones(4, 24), router, ExpertSettings(6, 2, True, Activation.SILU))
    assert torch.equal(shares, torch.tensor([[0.5, 0.5, 0, 0, 0, 0]]).expand(4, 6))


def test_what_a_token_gets_does_not_depend_on_its_company() -> None:
    router, gate_up, down = weights(8)
    settings = ExpertSettings(8, 2, True, Activation.SILU)
    one = grouped_experts(tokens(1, 7), router, gate_up.__getitem__, down.__getitem__, settings)
    crowd = torch.cat((tokens(64, 8), tokens(1, 7)))
    many = grouped_experts(crowd, router, gate_up.__getitem__, down.__getitem__, settings)[-1:]
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-4)
