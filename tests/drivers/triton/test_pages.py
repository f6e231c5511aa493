"""Frames are copied, zeroed and cut as their definitions say, and nothing beside them is touched."""

from __future__ import annotations

import pytest
import torch

from drivers.triton import definitions
from drivers.triton.layout import KvShape
from tests.drivers.interpreted import KERNELS

GRANULE_BYTES, LAYERS = 1024, 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_kernels_agree_with_their_definitions(dtype: torch.dtype) -> None:
    shape = KvShape(16, 2, 16, dtype)
    frame = -(-LAYERS * shape.layer_bytes // GRANULE_BYTES)
    arena = torch.randint(1, 255, (8 * frame * GRANULE_BYTES,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found, expected = arena.clone(), arena.clone()

    for table, target in ((KERNELS, found), (definitions, expected)):
        table.copy_frames(target, GRANULE_BYTES, frame * GRANULE_BYTES, torch.tensor([[0, 3 * frame], [frame, 4 * frame]]))
        table.zero_frames(target, GRANULE_BYTES, frame * GRANULE_BYTES, torch.tensor([5 * frame]))
        table.clear_tails(target, GRANULE_BYTES, shape, LAYERS, torch.tensor([[6 * frame, 5], [0, 0]]))

    assert torch.equal(found, expected)
    frames = found.view(8, -1)
    assert torch.equal(frames[4], arena.view(8, -1)[1])
    assert torch.equal(frames[[1, 2, 7]], arena.view(8, -1)[[1, 2, 7]])
    assert not frames[5].any()


def test_a_cut_leaves_the_tokens_before_it() -> None:
    shape = KvShape(16, 1, 8, torch.float32)
    arena = torch.full((2 * shape.layer_bytes,), 7, dtype=torch.uint8)

    KERNELS.clear_tails(arena, 2 * shape.layer_bytes, shape, 2, torch.tensor([[0, 5]]))

    tokens = arena.view(2, 2, 16, -1).ne(0).all(-1)
    assert tokens[:, :, :5].all()
    assert not arena.view(2, 2, 16, -1)[:, :, 5:].any()
