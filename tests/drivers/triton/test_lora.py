"""What adapters add agrees with its definition, that with the op's, and rows without an adapter are left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drivers.ops import reference
from drivers.ops.reference import LoraPair, LoraRows
from drivers.triton import definitions
from drivers.triton.layout import LORA_COLUMNS, LoraPlaces, StepRows
from tests.drivers.interpreted import KERNELS
from tests.drivers.triton.kernel_rig import error, step_of

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
TOLERANCES = {torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}  # of the change; the interpreter cuts bfloat16 off
COLUMNS, ROWS = 300, 130  # neither is a multiple of what is multiplied at once
RANKS = (5, 0, 70, 16)  # of the adapter of each slot
DECODE, PREFILL = ((1, 3), (0, 0), (1, 9), (1, 4)), ((40, 0), (3, 7), (33, 0), (1, 5))  # tokens of each slot's row, and those before


def make_places(dtype: torch.dtype) -> LoraPlaces:
    """Adapters of several ranks, in an arena of random numbers."""
    random = torch.Generator().manual_seed(3)
    arena = torch.randn(1 << 18, generator=random) / COLUMNS**0.5
    table = torch.zeros(len(RANKS) + 1, LORA_COLUMNS, dtype=torch.int64)
    for slot, rank in enumerate(RANKS):
        table[slot, :3] = torch.tensor([(2 * slot + 1) << 13, (slot + 5) << 14, rank])
    return LoraPlaces(arena.to(dtype), table, 128)


def values(step: StepRows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` and `y`."""
    random = torch.Generator().manual_seed(4)
    x, y = (torch.randn(step.num_tokens, width, generator=random).to(dtype) for width in (COLUMNS, ROWS))
    return x, y


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("lengths", "tile"), [(DECODE, 1), (PREFILL, 8), (PREFILL, 32)])
def test_changes_agree_with_their_definition(lengths: tuple[tuple[int, int], ...], tile: int, dtype: torch.dtype) -> None:
    step, places = step_of(lengths, tile), make_places(dtype)
    x, y = values(step, dtype)
    found, expected = y.clone(), y.clone()

    KERNELS.lora(found, x, places, step)
    definitions.lora(expected, x, places, step)

    assert error(found - y, expected - y) < TOLERANCES[dtype]


def test_the_definition_is_that_of_the_op() -> None:
    step, places = step_of(PREFILL, 8), make_places(torch.float32)
    x, y = values(step, torch.float32)
    expected, pairs, spans = y.clone(), list[LoraPair | None](), []
    for slot, start, count, _ in step.rows.tolist():
        down, up, rank, _ = places.table[slot].tolist()
        matrices = [places.arena[at : at + rank * width].view(rank, width) for at, width in ((down, COLUMNS), (up, ROWS))]
        pairs.append(LoraPair(matrices[0].t(), matrices[1]) if rank else None)
        spans.append(torch.arange(start, start + count))

    reference.lora(expected, x, LoraRows(torch.cat(spans), tuple(map(len, spans))), pairs)
    definitions.lora(y, x, places, step)

    assert error(y, expected) < 1e-6


def test_rows_without_an_adapter_and_lanes_of_nobody_are_left_alone() -> None:
    step, places = step_of(DECODE), make_places(torch.float32)
    x, y = values(step, torch.float32)
    found = y.clone()

    KERNELS.lora(found, x, replace(places, table=torch.where(torch.arange(5)[:, None] == 3, 0, places.table)), step)

    assert not torch.equal(found[[0, 2]], y[[0, 2]])
    assert torch.equal(found[[1, 3]], y[[1, 3]])


def test_a_token_gets_the_same_bits_in_any_company() -> None:
    places = make_places(torch.float32)
    crowd = step_of(DECODE)
    x, y = values(crowd, torch.float32)
    together, alone = y.clone(), y[2:3].clone()

    KERNELS.lora(together, x, places, crowd)
    KERNELS.lora(alone, x[2:3].clone(), places, step_of(((1, 9),), slots=(2,)))

    assert torch.equal(alone[0], together[2])
