"""The CPU arena: one buffer, seen as frames of any size."""

from __future__ import annotations

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
    everything = arena.all_layers(SHAPE)[5]
    assert everything[:, 2, 8:].tolist() == [[1.0] * 8, [2.0] * 8]
    assert float(everything.sum()) == 8 * 1.0 + 8 * 2.0


def test_a_new_arena_is_zero() -> None:
    assert not Arena(1 << 16, 256).bytes.any()


def test_the_device_has_memory() -> None:
    assert device_bytes() > 1 << 28
