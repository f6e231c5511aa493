"""The definition of every op, in plain torch: what any other implementation has to agree with.

Shapes: T tokens of a step, H query heads, J KV heads, D head_dim, P page_tokens. KV of one layer is a view `[granules, P, 2, J, D]` of the
arena, indexed by frame; consecutive entries overlap where a frame is larger than a granule, so only whole frames of the layer's own
space may be touched. Buffers are the caller's; an op that changes its input says so. How a call finds its arguments among values and
weights is `drivers.ops.running`'s; what a draw is, `drivers.ops.drawing`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from drivers.ops.calls import Activation, HeadNormSettings
from drivers.ops.ragged import HeadShape, RaggedBatch, RowSpan, first_page


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary factors of a step's tokens, in the compute dtype; R of each head's D dimensions are turned."""

    cos: Tensor  # [T, 1, R]
    sin: Tensor  # [T, 1, R], the first half negated

    @classmethod
    def at(cls, positions: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype) -> Rotation:
        """Of `positions [T]`: dimension pair i turns by `position * frequencies[i]`; cos and sin are multiplied by `factor`."""
        angles = positions.float().unsqueeze(-1) * frequencies
        cos, sin = angles.cos() * factor, angles.sin() * factor
        return cls(torch.cat((cos, cos), -1).to(dtype).unsqueeze(1), torch.cat((-sin, sin), -1).to(dtype).unsqueeze(1))


@dataclass(frozen=True, slots=True)
class LayerKv:
    """One layer's keys and values in the arena."""

    pages: Tensor  # [granules, P, 2, J, D]
    heads: HeadShape


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


def embed(table: Tensor, tokens: Tensor, scale: float = 1.0) -> Tensor:
    """Rows of the table `[vocab, hidden]` for tokens `[T] int64`, times `scale`, which is rounded to the dtype of the table."""
    rows = F.embedding(tokens, table)
    return rows if scale == 1.0 else rows * torch.tensor(scale, dtype=rows.dtype)


def embed_positions(residual: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """`residual` plus the rows of the table `[max_positions, hidden]` for positions `[T] int64`."""
    return residual + F.embedding(positions, table)


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


def rms_norm(x: Tensor, weight: Tensor, eps: float, has_unit_offset: bool = False) -> Tensor:
    """`x` over its root mean square along the last dimension, times weight (plus 1); computed in f32."""
    wide, factor = x.float(), weight.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * (factor + 1.0 if has_unit_offset else factor)).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, has_unit_offset: bool = False) -> Tensor:
    """`x` less its mean over its deviation along the last dimension, times weight (plus 1), plus bias; computed in f32."""
    factor = weight.float() + 1.0 if has_unit_offset else weight.float()
    return F.layer_norm(x.float(), weight.shape, factor, bias.float(), eps).to(x.dtype)


def head_norm(qkv: Tensor, query_norm: Tensor, key_norm: Tensor, heads: HeadShape, settings: HeadNormSettings) -> Tensor:
    """RMS norm of queries and of keys of `qkv [T, (H + 2 J) D]`: by head, weights `[D]`, or of all together, `[H D]` and `[J D]`."""
    queries_end = heads.num_heads * heads.head_dim
    keys_end = queries_end + heads.num_kv_heads * heads.head_dim
    normed: list[Tensor] = []
    for part, weight in ((qkv[:, :queries_end], query_norm), (qkv[:, queries_end:keys_end], key_norm)):
        shaped = part if settings.is_over_all_heads else part.reshape(part.shape[0], -1, heads.head_dim)
        normed.append(rms_norm(shaped, weight, settings.eps, settings.has_unit_offset).flatten(1))
    return torch.cat((*normed, qkv[:, keys_end:]), -1)


def rope(qkv: Tensor, rotation: Rotation, heads: HeadShape) -> Tensor:
    """Turns the first R dimensions of every query and key of `qkv [T, (H + 2 J) D]`: dimension i with dimension i + R / 2."""
    split = qkv.view(qkv.shape[0], -1, heads.head_dim)
    num_turned, num_dims = heads.num_heads + heads.num_kv_heads, rotation.cos.shape[-1]
    plain = split[:, :num_turned, :num_dims]
    low, high = plain.chunk(2, -1)
    answer = split.clone()
    answer[:, :num_turned, :num_dims] = plain * rotation.cos + torch.cat((high, low), -1) * rotation.sin
    return answer.flatten(1)


def kv_write(qkv: Tensor, kv: LayerKv, batch: RaggedBatch) -> None:
    """Writes keys and values of `qkv [T, (H + 2 J) D]` to their places in the pages."""
    heads = kv.heads
    fresh = qkv[:, heads.num_heads * heads.head_dim :].view(qkv.shape[0], 2, heads.num_kv_heads, heads.head_dim)
    for token, (frame, offset) in enumerate(zip(batch.write_frames.tolist(), batch.write_offsets.tolist(), strict=True)):
        kv.pages[frame, offset] = fresh[token]


def paged_attention(queries: Tensor, kv: LayerKv, batch: RaggedBatch, scale: float, softcap: float = 0.0) -> tuple[Tensor, Tensor]:
    """Causal attention of each row's `queries [T, H, D]` over its own pages, within its window. Scores are `q . k * scale`, then
    `softcap * tanh(score / softcap)` unless that is 0.

    Answers the mixed values `[T, H, D]` and the log-sum-exp of the scores `[T, H / J, J] f32`, by which partial results merge.
    """
    out = torch.empty_like(queries)
    lse = torch.empty(queries.shape[:2], dtype=torch.float32)
    for row in batch.spans:
        tokens = slice(row.start, row.start + row.count)
        out[tokens], lse[tokens] = _attend_row(queries[tokens].float() * scale, kv, batch, row, softcap)
    return out, lse.view(-1, kv.heads.num_queries_per_kv, kv.heads.num_kv_heads)


def _attend_row(queries: Tensor, kv: LayerKv, batch: RaggedBatch, row: RowSpan, softcap: float) -> tuple[Tensor, Tensor]:
    shape, heads = batch.shape, kv.heads
    page, end = first_page(shape, row.position), row.position + row.count
    frames = torch.from_numpy(row.frames[page : (end - 1) // shape.page_tokens + 1])
    start = page * shape.page_tokens
    gathered = kv.pages[frames].flatten(0, 1)[: end - start].float()
    keys, values = (gathered[:, part].repeat(1, heads.num_queries_per_kv, 1) for part in (0, 1))
    scores = torch.einsum("qhd,khd->hqk", queries, keys)
    if softcap:
        scores = cap(scores, softcap)
    asked, known = torch.arange(row.position, end)[:, None], torch.arange(start, end)[None, :]
    hidden = known > asked
    if shape.window is not None:
        hidden |= known <= asked - shape.window
    scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values), scores.logsumexp(-1).transpose(0, 1)


def add(x: Tensor, residual: Tensor) -> Tensor:
    """Adds `x` to `residual`, in place."""
    return residual.add_(x)


def act(x: Tensor, function: Activation) -> Tensor:
    """The nonlinear function of every value."""
    if function is Activation.SILU:
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if function is Activation.GELU_TANH else "none")


def act_mul(gate_up: Tensor, function: Activation) -> Tensor:
    """`f(gate) * up` of `[T, 2 * inner]`, gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return act(gate, function) * up


def cap(x: Tensor, softcap: float) -> Tensor:
    """`softcap * tanh(x / softcap)`: the op of that name."""
    return softcap * torch.tanh(x / softcap)


def page_copy(pages: Tensor, source: int, target: int) -> None:
    """Copies one whole frame: `pages [granules, frame_bytes] uint8`. The two frames do not overlap."""
    pages[target].copy_(pages[source])


def page_zero(pages: Tensor, frame: int) -> None:
    """Fills one whole frame with zeros: `pages [granules, frame_bytes] uint8`."""
    pages[frame].zero_()
