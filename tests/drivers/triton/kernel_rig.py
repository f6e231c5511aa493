"""Steps over pages in scattered frames, for the tests of kernels; what pages hold beside what was written is garbage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drivers.triton import definitions
from drivers.triton.layout import AttentionShape, Heads, KvShape, LayerKv, StepRows

GRANULE_BYTES, PAGE_TOKENS = 1024, 16
LAYERS = 2  # the second of which is used


@dataclass(frozen=True)
class Scene:
    """A step of rows `(tokens, position)`, with keys and values of everything before and in it in pages. No tokens: an unused lane."""

    kv: LayerKv
    heads: Heads
    table: Tensor
    step: StepRows
    qkv: Tensor
    lengths: tuple[tuple[int, int], ...]

    @property
    def queries(self) -> Tensor:
        """A view of the queries of `qkv`."""
        return self.qkv.view(self.qkv.shape[0], -1, self.heads.head_dim)[:, : self.heads.num_heads]

    @property
    def used(self) -> Tensor:
        """Tokens of lanes that are used."""
        return self.step.slots >= 0

    def shape(self, window: int = 0, softcap: float = 0.0, chunk: int = 0) -> AttentionShape:
        """Attention as it is usual for these heads."""
        return AttentionShape(self.heads, self.heads.head_dim**-0.5, softcap, window, chunk)

    def on(self, arena: Tensor) -> LayerKv:
        """The same pages of another arena."""
        return replace(self.kv, arena=arena)


def make_scene(
    lengths: tuple[tuple[int, int], ...], heads: Heads, dtypes: tuple[torch.dtype, torch.dtype], tile_tokens: int = 1, seed: int = 0
) -> Scene:
    """`dtypes` are that of queries, and that of pages."""
    random = torch.Generator().manual_seed(seed)
    shape = KvShape(PAGE_TOKENS, heads.num_kv_heads, heads.head_dim, dtypes[1])
    granules = -(-LAYERS * shape.layer_bytes // GRANULE_BYTES)
    pages = [(position + count - 1) // PAGE_TOKENS + 1 if count else 0 for count, position in lengths]
    arena = torch.randint(0, 255, ((sum(pages) + 1) * granules * GRANULE_BYTES,), dtype=torch.uint8, generator=random)
    kv = LayerKv(arena, GRANULE_BYTES, shape.layer_bytes, shape)
    frames = (torch.randperm(sum(pages), generator=random) * granules).int().split(pages)
    table = torch.full((len(lengths) + 1, max(pages)), -1, dtype=torch.int32)
    for slot, found in enumerate(frames):
        table[slot, : len(found)] = found
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    for slot, (count, position) in enumerate(lengths):
        if count:
            whole = step_of(((count + position, 0),), slots=(slot,))
            flat = torch.ones(count + position, heads.head_dim // 2), torch.zeros(count + position, heads.head_dim // 2)
            fresh = torch.randn(count + position, width, generator=random).to(dtypes[0])
            definitions.rope_kv_write(fresh, flat, None, kv, (heads, table, whole))
    step = step_of(lengths, tile_tokens)
    qkv = torch.randn(step.num_tokens, width, generator=random).to(dtypes[0])
    return Scene(kv, heads, table, step, qkv, lengths)


def step_of(lengths: tuple[tuple[int, int], ...], tile_tokens: int = 1, slots: tuple[int, ...] = ()) -> StepRows:
    """Rows side by side; the row of lane i sits in slot i, unless said."""
    rows, positions, places, tiles, start = [], [], [], [], 0
    for row, (count, position) in enumerate(lengths):
        slot = slots[row] if slots else row
        rows.append((slot, start, count, position))
        positions += list(range(position, position + count)) if count else [0]
        places += [slot] * count if count else [-1]
        tiles += [(row, first) for first in range(0, max(count, 1), tile_tokens)]
        start += max(count, 1)
    tensors = (torch.tensor(part, dtype=torch.int32) for part in (places, rows, tiles))
    return StepRows(torch.zeros(start, dtype=torch.int64), torch.tensor(positions), *tensors, tile_tokens, ())


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
