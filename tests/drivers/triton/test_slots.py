"""What a step does to rows on the device agrees with its definition."""

from __future__ import annotations

import torch

from drivers.triton import definitions
from drivers.triton.layout import INT_COLUMNS, IS_DONE, POSITION, STOP_COLUMNS, TOKEN
from tests.drivers.interpreted import KERNELS
from tests.drivers.triton.kernel_rig import step_of

SLOTS = 9  # the last of which nobody has
LANES = torch.tensor([3, 0, 2, 8, 5, 8], dtype=torch.int32)


def rows() -> torch.Tensor:
    ints = torch.randint(0, 50, (SLOTS, INT_COLUMNS), generator=torch.Generator().manual_seed(1))
    ints[:, IS_DONE] = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0, 1])
    return ints


def test_prepare_makes_a_step_of_the_rows_that_go_on() -> None:
    found, expected = (step_of(((1, 0),) * len(LANES)) for _ in range(2))

    KERNELS.prepare(LANES, rows(), found)
    definitions.prepare(LANES, rows(), expected)

    for name in ("tokens", "positions", "slots", "rows"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.slots.tolist() == [3, 0, -1, -1, 5, -1]
    assert found.rows[:, 2].tolist() == [1, 1, 0, 0, 1, 0]


def test_append_advances_rows_and_ends_those_that_stop_or_fail() -> None:
    stops = torch.full((SLOTS, STOP_COLUMNS), -1)
    stops[3, 4] = 7
    drawn = torch.tensor([7, 8, 9, -1, -2, -1], dtype=torch.int32)
    found, expected, before = rows(), rows(), rows()

    KERNELS.append(LANES, drawn, found, stops)
    definitions.append(LANES, drawn, expected, stops)

    assert torch.equal(found, expected)
    assert found[[3, 0, 5], TOKEN].tolist() == [7, 8, 0]
    assert found[[3, 0, 5], IS_DONE].tolist() == [1, 0, 1]
    assert (found - before)[:, POSITION].tolist() == [1, 0, 0, 1, 0, 1, 0, 0, 0]
