"""Pages in the lane order, filled with what no kernel may read, and attention over them in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from drivers.native.attention import AttentionSettings, LayerPages, NativeAttention, layer_part_bytes, native_attention
from drivers.native.isa import AVX512, levels
from drivers.ops.ragged import HeadShape, RowSpan

GRANULE_BYTES = 1024
NOWHERE = 1 << 40  # a frame that no arena has: reading it ends the process


@dataclass
class Context:
    """One row's keys and values, and its frames."""

    keys: Tensor  # [N, J, D] f32
    values: Tensor
    frames: np.ndarray


@dataclass
class Bed:
    """An arena of pages; whatever is not written holds bytes of 0xff, which are NaN as floats and as scales."""

    native: NativeAttention
    dtype: torch.dtype
    heads: HeadShape
    page_tokens: int = 16
    window: int = 0
    softcap: float = 0.0
    num_frames: int = 160
    layer_bytes: int = 64  # something of another layer lies before
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(11))

    def __post_init__(self) -> None:
        frame_bytes = self.layer_bytes + layer_part_bytes(self.dtype, self.page_tokens, self.heads)
        self.granules = -(-frame_bytes // GRANULE_BYTES)
        arena = torch.full((self.num_frames * self.granules * GRANULE_BYTES,), 0xFF, dtype=torch.uint8)
        self.pages = LayerPages(arena, GRANULE_BYTES, self.page_tokens, self.heads, self.dtype, self.layer_bytes)
        self._free = (torch.randperm(self.num_frames, generator=self.random).numpy() * self.granules).tolist()

    @property
    def is_rounded(self) -> bool:
        """Whether eight-bit floats are widened to sixteen bits, and no further."""
        return self.dtype is torch.float8_e4m3fn and AVX512 in levels() and self.native is native_attention(AVX512)

    @property
    def settings(self) -> AttentionSettings:
        """Of the op."""
        return AttentionSettings(self.heads.head_dim**-0.5, self.softcap, self.window, self.heads.num_heads)

    def numbers(self, *shape: int) -> Tensor:
        """Random ones."""
        return torch.randn(shape, generator=self.random)

    def context(self, num_tokens: int) -> Context:
        """A row with random keys and values, written to pages in no order."""
        shape = (num_tokens, self.heads.num_kv_heads, self.heads.head_dim)
        keys, values = self.numbers(*shape), self.numbers(*shape)
        frames = np.array([self._free.pop() for _ in range(-(-num_tokens // self.page_tokens))], dtype=np.int64)
        self.native.write(self.pages, [RowSpan(0, num_tokens, 0, frames)], keys, values)
        return Context(keys, values, frames)

    def queries(self, num_tokens: int) -> Tensor:
        """Random queries `[n, H, D]`."""
        return self.numbers(num_tokens, self.heads.num_heads, self.heads.head_dim)

    def attend(self, parts: Sequence[tuple[Context, int, Tensor]], cut_for: int = 1) -> list[tuple[Tensor, Tensor]]:
        """One step of some rows, each with the position of its first query and its queries."""
        rows, start = [], 0
        for context, position, queries in parts:
            seen = max(0, position - self.window + 1) // self.page_tokens if self.window else 0
            frames = context.frames.copy()
            frames[:seen] = NOWHERE
            frames[(position + len(queries) - 1) // self.page_tokens + 1 :] = NOWHERE
            rows.append(RowSpan(start, len(queries), position, frames))
            start += len(queries)
        out, lse = self.native.attend(self.pages, rows, torch.cat([queries for _, _, queries in parts]), self.settings, cut_for)
        return [(out[row.start : row.start + row.count], lse[row.start : row.start + row.count]) for row in rows]

    def exact(self, context: Context, position: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The same by definition, in float64, with keys, values and queries as the kernel has them."""
        keys, values = (self.held(part).repeat(1, self.heads.num_queries_per_kv, 1) for part in (context.keys, context.values))
        asked = (queries.bfloat16() if self.is_rounded or self.dtype is torch.bfloat16 else queries).double()
        scores = torch.einsum("qhd,khd->hqk", asked, keys) * self.settings.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        at, known = torch.arange(position, position + len(queries))[:, None], torch.arange(len(keys))[None]
        hidden = known > at
        if self.window:
            hidden |= known <= at - self.window
        scores = scores.masked_fill(hidden, -float("inf"))
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values), scores.logsumexp(-1).T

    def held(self, part: Tensor) -> Tensor:
        """Keys or values as they are in pages, in float64."""
        if self.dtype is torch.int8:
            scale = part.abs().amax(-1, keepdim=True) / 127
            return (part * (1 / scale)).round().double() * scale.double()
        if self.dtype is torch.float8_e4m3fn:
            most = part.abs().amax(-1, keepdim=True)
            values = (part * (448 / most)).to(self.dtype).float() * (most / 448)
            return (values.bfloat16() if self.is_rounded else values).double()
        return part.to(self.dtype).double()
