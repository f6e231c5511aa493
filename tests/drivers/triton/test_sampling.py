"""The sampling kernel draws what the sorted definition draws, for every cut, for ties, and for rows that cannot draw."""

from __future__ import annotations

import pytest
import torch

from drivers.triton import definitions
from drivers.triton.layout import CUT_COLUMNS, INT_COLUMNS, IS_DONE, NOT_FINITE, POSITION, SEED, TOP_K, UNUSED
from tests.drivers.interpreted import KERNELS

VOCABULARY = 5000  # more than one piece
Cut = tuple[float, int, float, float]  # temperature, top_k, top_p, min_p


def tables(settings: list[Cut]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lanes, ints and cuts of rows with (temperature, top_k, top_p, min_p)."""
    random, num = torch.Generator().manual_seed(3), len(settings)
    ints, cuts = torch.zeros(num, INT_COLUMNS, dtype=torch.int64), torch.zeros(num, CUT_COLUMNS, dtype=torch.float64)
    ints[:, POSITION] = torch.randint(0, 1 << 17, (num,), generator=random)
    ints[:, SEED] = torch.randint(-(1 << 63), (1 << 63) - 1, (num,), generator=random)
    ints[:, TOP_K] = torch.tensor([top_k for _, top_k, _, _ in settings])
    cuts[:, :3] = torch.tensor([(temperature, top_p, min_p) for temperature, _, top_p, min_p in settings], dtype=torch.float64)
    return torch.arange(num, dtype=torch.int32), ints, cuts


def drawn(logits: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> list[int]:
    """What the kernel draws, after a look at what the definition does."""
    found, expected = (torch.full((logits.shape[0],), -9, dtype=torch.int32) for _ in range(2))
    KERNELS.sample(logits, *state, found)
    definitions.sample(logits, *state, expected)
    assert found.tolist() == expected.tolist()
    tokens: list[int] = found.tolist()
    return tokens


@pytest.mark.parametrize(
    "cut",
    [
        (0.0, 0, 1.0, 0.0),
        (1.0, 0, 1.0, 0.0),
        (0.7, 40, 1.0, 0.0),
        (1.3, 0, 0.9, 0.0),
        (1.0, 0, 1.0, 0.1),
        (1.5, 200, 0.6, 0.05),
        (1e-9, 3, 0.5, 1.0),
    ],
)
def test_draws_are_those_of_the_definition(cut: Cut) -> None:
    logits = 4 * torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(5))

    drawn(logits, tables([cut] * 4))


@pytest.mark.parametrize(
    "cut", [(1.0, 7, 1.0, 0.0), (1.0, 0, 0.41235, 0.0), (1.0, 900, 0.70005, 0.0), (1.0, 0, 1.0, 1.0), (0.0, 0, 1.0, 0.0)]
)
def test_ties_are_kept_in_the_order_of_their_ids(cut: Cut) -> None:
    few = torch.randint(-2, 3, (3, VOCABULARY), generator=torch.Generator().manual_seed(5)).float()
    few[1] = 0.0
    few[2, VOCABULARY // 2 :] = -float("inf")
    few[2, :9] = -0.0

    drawn(few, tables([cut] * 3))


def test_rows_that_are_done_or_not_finite_say_so() -> None:
    logits = torch.zeros(5, 100)
    logits[1, 99], logits[2, 3], logits[3] = float("nan"), float("inf"), -float("inf")
    state = tables([(1.0, 0, 1.0, 0.0)] * 5)
    state[1][0, IS_DONE] = 1

    assert drawn(logits, state)[:4] == [UNUSED, NOT_FINITE, NOT_FINITE, NOT_FINITE]


def test_logits_of_half_precision_are_drawn_from_as_floats() -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(5)).to(torch.bfloat16)

    drawn(logits, tables([(0.8, 50, 0.95, 0.0)] * 2))
