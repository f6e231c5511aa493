"""The definition of every op, in plain torch: what a fused implementation has to agree with.

Shapes: T tokens of a step, H query heads, J KV heads, D head_dim, P page_tokens. KV of one layer is a view `[granules, P, 2, J, D]` of the
arena, indexed by frame; consecutive entries overlap where a frame is larger than a granule, so only whole frames of the layer's own
space may be touched. Buffers are the caller's; an op that changes its input says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from drivers.ops.ragged import HeadShape, RaggedBatch, RowSpan, first_page


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary factors of a step's tokens, in the compute dtype."""

    cos: Tensor  # [T, 1, D]
    sin: Tensor  # [T, 1, D], the first half negated


@dataclass(frozen=True, slots=True)
class LayerKv:
    """One layer's keys and values in the arena."""

    pages: Tensor  # [granules, P, 2, J, D]
    heads: HeadShape


@dataclass(frozen=True, slots=True)
class Cuts:
    """How each row of a batch of logits narrows what may be drawn; see `drivers.contract.Sampling`."""

    temperature: Tensor  # [rows] f32, > 0
    top_k: Tensor  # [rows] int64, 0: off
    top_p: Tensor  # [rows] f64
    min_p: Tensor  # [rows] f32


@dataclass(frozen=True, slots=True)
class LoraPair:
    """A change of low rank to one linear, `down` and `up` transposed as they are multiplied; the adapter's scale is in `up`."""

    down: Tensor  # [in, rank]
    up: Tensor  # [rank, out]
    record: bytes = b""  # how native code is told of it (drivers.native.lora); empty: not at all


@dataclass(frozen=True, slots=True)
class LoraRows:
    """The tokens of a step that run with adapters, those of one adapter side by side."""

    tokens: Tensor  # [n] int64: where they are in the step
    counts: tuple[int, ...]  # of each adapter


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    """Rows of the table `[vocab, hidden]` for tokens `[T] int64`."""
    return F.embedding(tokens, table)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x [T, in]` times `weight [out, in]` transposed, plus bias."""
    return F.linear(x, weight, bias)


def lora(y: Tensor, x: Tensor, rows: LoraRows, pairs: Sequence[LoraPair | None]) -> Tensor:
    """Adds to `y [T, out]`, in place, the change that each adapter's pair makes of its own tokens of `x [T, in]`; no other token of
    `y` is touched. Adapters without a pair here change nothing."""
    first = 0
    for count, pair in zip(rows.counts, pairs, strict=True):
        tokens, first = rows.tokens[first : first + count], first + count
        if pair is not None:
            y[tokens] += x[tokens] @ pair.down @ pair.up
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x` over its root mean square along the last dimension, times weight; the mean is taken in f32."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Adds `x` to `residual`, in place, and answers its `rms_norm`."""
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of `[T, 2 * inner]`. May overwrite its input."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rope_kv_write(qkv: Tensor, rotation: Rotation, kv: LayerKv, batch: RaggedBatch) -> Tensor:
    """Turns queries and keys of `qkv [T, H + 2 J, D]`, writes keys and values to their frames, answers the queries `[T, H, D]`."""
    heads = kv.heads
    turned = qkv[:, : heads.num_heads + heads.num_kv_heads]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * rotation.cos + torch.cat((high, low), dim=-1) * rotation.sin
    fresh = torch.stack((turned[:, heads.num_heads :], qkv[:, heads.num_heads + heads.num_kv_heads :]), dim=1)
    for token, (frame, offset) in enumerate(zip(batch.write_frames.tolist(), batch.write_offsets.tolist(), strict=True)):
        kv.pages[frame, offset] = fresh[token]
    return turned[:, : heads.num_heads]


def paged_attention(queries: Tensor, kv: LayerKv, batch: RaggedBatch) -> tuple[Tensor, Tensor]:
    """Causal attention of each row over its own pages, within its window.

    Answers the mixed values `[T, H, D]` and the log-sum-exp of the scaled scores `[T, H / J, J] f32`, by which partial results merge.
    """
    out = torch.empty_like(queries)
    lse = torch.empty(queries.shape[:2], dtype=torch.float32)
    for row in batch.spans:
        tokens = slice(row.start, row.start + row.count)
        out[tokens], lse[tokens] = _attend_row(queries[tokens].float(), kv, batch, row)
    return out, lse.view(-1, kv.heads.num_queries_per_kv, kv.heads.num_kv_heads)


def _attend_row(queries: Tensor, kv: LayerKv, batch: RaggedBatch, row: RowSpan) -> tuple[Tensor, Tensor]:
    shape, heads = batch.shape, kv.heads
    page, end = first_page(shape, row.position), row.position + row.count
    frames = torch.from_numpy(row.frames[page : (end - 1) // shape.page_tokens + 1])
    start = page * shape.page_tokens
    gathered = kv.pages[frames].flatten(0, 1)[: end - start].float()
    keys, values = (gathered[:, part].repeat(1, heads.num_queries_per_kv, 1) for part in (0, 1))
    scores = torch.einsum("qhd,khd->hqk", queries, keys) * heads.head_dim**-0.5
    asked, known = torch.arange(row.position, end)[:, None], torch.arange(start, end)[None, :]
    hidden = known > asked
    if shape.window is not None:
        hidden |= known <= asked - shape.window
    scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values), scores.logsumexp(-1).transpose(0, 1)


def sample(logits: Tensor, cuts: Cuts, uniforms: Tensor) -> Tensor:
    """Draws one token per row of `logits [rows, vocab] f32`, penalties applied, with `uniforms [rows] f64` in [0, 1).

    Tokens are ranked by logit, ties by id. Kept are: the first `top_k`; of those the shortest prefix with at least `top_p` of their mass;
    of those the ones with at least `min_p` of the likeliest's probability. The draw inverts the cumulated probability over the kept
    tokens in the order of their ids.
    """
    drawn = []
    for row in range(logits.shape[0]):
        scaled = logits[row] / cuts.temperature[row]
        order = torch.argsort(scaled, descending=True, stable=True)
        top_k = int(cuts.top_k[row])
        if top_k > 0:
            order = order[:top_k]
        mass = scaled[order].double().softmax(-1)
        before = mass.cumsum(-1) - mass
        kept = (before < cuts.top_p[row]) & (mass >= cuts.min_p[row] * mass[0])
        kept[0] = True
        ids = order[kept].sort().values
        drawn.append(int(ids[invert(scaled[ids].double().softmax(-1), uniforms[row])]))
    return torch.tensor(drawn, dtype=torch.int64)


def invert(mass: Tensor, uniforms: Tensor) -> Tensor:
    """The first index whose cumulated `mass [..., n]` exceeds `uniforms [...]` of the total; never one without mass."""
    summed = mass.double().cumsum(-1)
    total = summed[..., -1:]
    idx = (summed <= uniforms.unsqueeze(-1) * total).sum(-1)
    last = (summed < total).sum(-1)  # the first index that reaches the total: rounding must not step past it
    return torch.minimum(idx, last)


def page_copy(pages: Tensor, source: int, target: int) -> None:
    """Copies one whole frame: `pages [granules, frame_bytes] uint8`. The two frames do not overlap."""
    pages[target].copy_(pages[source])


def page_zero(pages: Tensor, frame: int) -> None:
    """Fills one whole frame with zeros: `pages [granules, frame_bytes] uint8`."""
    pages[frame].zero_()
