"""The CPU arena: one buffer, seen as frames of any size."""

from __future__ import annotations

import pytest
import torch

from drivers.arena import Arena, FrameShape, device_bytes

SHAPE = FrameShape(num_layers=2, page_tokens=4, num_kv_heads=1, head_dim=8, size_bytes=1024, dtype=torch.float32)


def test_a_frame_starts_at_its_granule() -> None:
    arena = Arena(1 << 16, 256)
    arena.frame(3, 1024)[0] = 7
    assert int(arena.bytes[3 * 256]) == 7
    assert int(arena.frames(1024)[3][0]) == 7


def test_the_last_frame_ends_with_the_arena() -> None:
    arena = Arena(1 << 16, 256)
    last = arena.num_frames(1024) - 1
    arena.frames(1024)[last].fill_(9)
    assert bytes(arena.frame(last, 1024)) == b"\x09" * 1024
    assert last * 256 + 1024 == 1 << 16


def test_layers_of_a_frame_follow_one_another() -> None:
    arena = Arena(1 << 16, 256)
    for layer in range(2):
        arena.layer_pages(SHAPE, layer)[5, 2, 1] = layer + 1.0
    [everything] = [view[5] for view in arena.token_views(SHAPE)]
    assert everything[:, 0, 2, 8:].tolist() == [[1.0] * 8, [2.0] * 8]
    assert float(everything.sum()) == 8 * 1.0 + 8 * 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_lanes_of_a_frame_are_all_of_it_and_no_byte_of_a_token_is_another_s(dtype: torch.dtype) -> None:
    arena = Arena(1 << 16, 256)
    shape = FrameShape(3, 16, 2, 16, 12 * 1024, dtype, is_in_lanes=True)
    for token in range(16):
        for view in arena.token_views(shape):
            view[2, :, :, token].view(torch.uint8).add_(1)
    assert arena.bytes.sum() == 3 * shape.layer_bytes
    assert arena.bytes[2 * 256 :][: 3 * shape.layer_bytes].eq(1).all()


def test_keys_in_lanes_have_sixteen_tokens_side_by_side() -> None:
    arena = Arena(1 << 16, 256)
    shape = FrameShape(1, 16, 2, 16, 8192, torch.bfloat16, is_in_lanes=True)
    keys, values = arena.token_views(shape)
    keys[0, 0, 8 + 3, 5, 1] = 1.0  # dimension 7 of token 5 of head 1
    values[0, 0, 1, 5, 7] = 2.0
    items = arena.bytes.view(torch.bfloat16)
    assert items.nonzero().flatten().tolist() == [((8 + 3) * 16 + 5) * 2 + 1, 2 * 16 * 16 + (16 + 5) * 16 + 7]


def test_a_new_arena_is_zero() -> None:
    assert not Arena(1 << 16, 256).bytes.any()


def test_the_device_has_memory() -> None:
    assert device_bytes() > 1 << 28
