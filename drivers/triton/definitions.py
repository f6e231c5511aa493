"""The definition of every kernel of the CUDA driver, in plain torch over the same arguments: what the kernels have to agree with.

They read lengths back from the device, so they are slow there and cannot be captured; the tests and `bench/gpu.py` compare kernels with
them, and on a device that is not there (tests) the driver runs them.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from drivers.ops.calls import Activation, ExpertSettings
from drivers.ops.drawing import Cuts
from drivers.ops.drawing import sample as draw
from drivers.ops.experts import grouped_experts
from drivers.philox import uniforms
from drivers.triton.layout import (
    NOT_FINITE,
    QUANTIZED,
    SCALE_BYTES,
    UNUSED,
    Angles,
    AttentionShape,
    KvShape,
    LayerKv,
    LoraPlaces,
    Norms,
    Place,
    StepRows,
)
from drivers.triton.matrix import QuantMatrix, Stack, Stacks

MIN_TEMPERATURE = 1e-5


def paged_attention(queries: Tensor, kv: LayerKv, table: Tensor, step: StepRows, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    """Causal attention of each row's tokens over its own pages, within the window.

    `queries [T, H, D]`; answers the mixed values `[T, H, D]` and the log-sum-exp of the scores `[T, H] f32`. What it answers for tokens of
    unused lanes is not said.
    """
    out = torch.zeros(queries.shape, dtype=queries.dtype, device=queries.device)
    lse = torch.zeros(queries.shape[:2], dtype=torch.float32, device=queries.device)
    for slot, start, count, position in step.rows.tolist():
        if count:
            at_once = 1 if shape.fixed_chunk else count  # a token by itself has the bits that it has in any company
            for first in range(0, count, at_once):
                tokens, end = slice(start + first, start + first + at_once), position + first + at_once
                out[tokens], lse[tokens] = _attend_row(queries[tokens].float(), gather(kv, table[slot], end), end - at_once, shape)
    return out, lse


def _attend_row(queries: Tensor, found: tuple[Tensor, Tensor], position: int, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    keys, values = (part.repeat(shape.heads.num_queries_per_kv, 1, 1) for part in found)
    scores = torch.einsum("qhd,hkd->hqk", queries, keys) * shape.scale
    if shape.softcap:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    known = torch.arange(keys.shape[1], device=keys.device)[None, :]
    asked = torch.arange(position, position + queries.shape[0], device=keys.device)[:, None]
    hidden = known > asked
    if shape.window:
        hidden |= known <= asked - shape.window
    scores = scores.masked_fill(hidden, float("-inf"))
    values = values.masked_fill(hidden.all(0)[None, :, None], 0.0)  # frames of pages that left the window may hold anything
    return torch.einsum("hqk,hkd->qhd", scores.softmax(-1), values), scores.logsumexp(-1).transpose(0, 1)


def gather(kv: LayerKv, frames: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[J, num_tokens, D] f32` of the first tokens behind a page table."""
    shape = kv.shape
    num_pages = -(-num_tokens // shape.page_tokens)
    pages = frames[:num_pages].long().clamp_min(0)
    parts = _views(kv)[pages].float()  # [pages, 2, J, P, D]
    if shape.is_quantized:
        parts = parts * _scale_views(kv)[pages].unsqueeze(-1)
    keys, values = parts.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :num_tokens]
    return keys, values


def _views(kv: LayerKv) -> Tensor:
    """`[frames, 2, J, P, D]`; frames overlap, as they begin at every granule."""
    items, granule, layer = kv.items()
    shape = kv.shape
    num_frames = (items.numel() - layer - 2 * shape.half_items) // granule + 1
    strides = (granule, shape.half_items, shape.page_tokens * shape.head_dim, shape.head_dim, 1)
    return items.as_strided((num_frames, 2, shape.num_kv_heads, shape.page_tokens, shape.head_dim), strides, layer)


def _scale_views(kv: LayerKv) -> Tensor:
    """`[frames, 2, J, P]`."""
    items, granule, layer = kv.scales()
    shape = kv.shape
    half = shape.num_kv_heads * shape.page_tokens
    num_frames = (items.numel() - layer - 2 * half) // granule + 1
    return items.as_strided((num_frames, 2, shape.num_kv_heads, shape.page_tokens), (granule, half, shape.page_tokens, 1), layer)


def rope_kv_write(qkv: Tensor, angles: Angles, norms: Norms | None, kv: LayerKv, place: Place) -> None:
    """Norms (if asked) and turns queries and keys of `qkv [T, (H + 2 J) D]`, writes keys and values to their pages, queries to their place.

    Dimensions of a head from `turned` on are not turned. Keys in `qkv` are left as anything.
    """
    heads, table, step = place
    num_turned = heads.num_heads + heads.num_kv_heads
    wide = qkv.view(qkv.shape[0], -1, heads.head_dim).float()
    turned = wide[:, :num_turned]
    if norms is not None:
        query_norm, key_norm, eps, has_offset = norms
        weights = torch.cat((query_norm.expand(heads.num_heads, -1), key_norm.expand(heads.num_kv_heads, -1))).float() + float(has_offset)
        turned = turned * torch.rsqrt(turned.square().mean(-1, keepdim=True) + eps) * weights
    turned = _turn(turned, angles, step.positions)
    qkv.view(wide.shape)[:, : heads.num_heads] = turned[:, : heads.num_heads].to(qkv.dtype)
    fresh = torch.stack((turned[:, heads.num_heads :], wide[:, num_turned:]), dim=1)  # [T, 2, J, D]
    used = (step.slots >= 0).nonzero().squeeze(-1)
    positions, page_tokens = step.positions[used], kv.shape.page_tokens
    frames = table[step.slots[used].long(), positions // page_tokens].long()
    _write(kv, frames, positions % page_tokens, fresh[used])


def _turn(x: Tensor, angles: Angles, positions: Tensor) -> Tensor:
    cos, sin = (part[positions].unsqueeze(1) for part in angles)
    half = cos.shape[-1]
    low, high, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=-1)


def _write(kv: LayerKv, frames: Tensor, offsets: Tensor, fresh: Tensor) -> None:
    shape = kv.shape
    if shape.is_quantized:
        largest = QUANTIZED[shape.dtype]
        scales = fresh.abs().amax(-1).clamp_min(1e-12) / largest
        fresh = fresh / scales.unsqueeze(-1)
        if shape.dtype is torch.int8:
            fresh = (fresh + 0.5).floor()
        fresh = fresh.clamp(-largest, largest)
        _scale_views(kv)[frames, :, :, offsets] = scales
    views = _views(kv)
    if shape.dtype is torch.float8_e4m3fn:  # index_put has no such kind
        views, stored = views.view(torch.uint8), fresh.to(shape.dtype).view(torch.uint8)
        views[frames, :, :, offsets] = stored
        return
    views[frames, :, :, offsets] = fresh.to(shape.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, has_unit_offset: bool) -> Tensor:
    """`x [T, n]` over its root mean square, times weight (plus 1, if so), in float32."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * (weight.float() + float(has_unit_offset))).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, settings: tuple[float, bool]) -> Tensor:
    """Adds `x` to `residual`, in place, and answers its `rms_norm`; `settings` are epsilon and the unit offset."""
    residual.add_(x)
    return rms_norm(residual, weight, *settings)


def act_mul(gate_up: Tensor, function: Activation) -> Tensor:
    """`f(gate) * up` of `[T, 2 * inner]`, in float32."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (activate(gate, function) * up).to(gate_up.dtype)


def activate(x: Tensor, function: Activation) -> Tensor:
    """The function of a feed-forward block."""
    if function is Activation.SILU:
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if function is Activation.GELU_TANH else "none")


def quant_linear(x: Tensor, matrix: QuantMatrix, bias: Tensor | None) -> Tensor:
    """`x [T, columns]` times the matrix transposed, plus bias; sums in float32."""
    y = x.float() @ dequantize(matrix, torch.float32).t()
    return (y if bias is None else y + bias.float()).to(x.dtype)


def fixed_linear(x: Tensor, weight: Tensor | QuantMatrix, bias: Tensor | None) -> Tensor:
    """A linear in which no token's bits depend on another: here each token by itself."""
    if isinstance(weight, QuantMatrix):
        return torch.cat([quant_linear(token, weight, bias) for token in torch.split(x, 1)])
    return torch.cat([F.linear(token, weight, bias) for token in torch.split(x, 1)])


def dequantize(matrix: QuantMatrix, dtype: torch.dtype, index: Tensor | None = None) -> Tensor:
    """The matrix as floats `[rows, columns]`; with `index [n] int64`, those rows of it."""
    values, scales = (part if index is None else part[index] for part in (matrix.values, matrix.scales.view(matrix.rows, -1)))
    offsets = None if matrix.offsets is None else matrix.offsets.view(matrix.rows, -1)
    offsets = offsets if offsets is None or index is None else offsets[index]
    if matrix.bits == 4:
        values = torch.stack((values & 15, values >> 4), dim=-1).flatten(1)
    values = values[:, : matrix.columns].float()
    wide = [None if part is None else _spread(part.float(), matrix) for part in (scales, offsets)]
    zero = float(1 << (matrix.bits - 1))
    assert wide[0] is not None
    return ((values - zero) * wide[0] if wide[1] is None else values * wide[0] - wide[1]).to(dtype)


def _spread(scales: Tensor, matrix: QuantMatrix) -> Tensor:
    return scales.repeat_interleave(matrix.group, dim=1)[:, : matrix.columns] if matrix.group else scales


def experts(x: Tensor, router: Tensor, stacks: Stacks, settings: ExpertSettings, _lanes: Tensor | None) -> Tensor:
    """`x [T, hidden]` by the likeliest experts (drivers.ops.experts): `router [E, hidden]`; of `stacks [E, 2 * inner, hidden]`, gate
    first, and `[E, hidden, inner]`. What it answers for tokens of unused lanes is not said: `lanes` are the rows of a step all of whose
    rows have one token at most."""
    gates_and_ups, downs = (partial(_matrix_of, stack, settings.num_experts, x.dtype) for stack in stacks)
    return grouped_experts(x, router, gates_and_ups, downs, settings)


def _matrix_of(stack: Stack, num: int, dtype: torch.dtype, idx: int) -> Tensor:
    if isinstance(stack, Tensor):
        return stack[idx]
    rows = stack.rows // num
    return dequantize(stack, dtype, torch.arange(idx * rows, (idx + 1) * rows, device=stack.values.device))


def lora(y: Tensor, x: Tensor, places: LoraPlaces, step: StepRows) -> None:
    """Adds to `y [T, out]`, in place, what the adapter of each row changes of the product of its tokens of `x [T, in]`; no other token of
    `y` is touched. Sums are rounded between the two products, and before they are added."""
    for slot, start, count, _position in step.rows.tolist():
        down, up, rank, _ = places.table[slot].tolist()
        if count and rank:
            tokens = slice(start, start + count)
            first, second = (places.arena[at : at + rank * part.shape[1]].view(rank, -1) for at, part in ((down, x), (up, y)))
            y[tokens] += x[tokens] @ first.t() @ second


def sample(logits: Tensor, lanes: Tensor, ints: Tensor, cuts: Tensor, out: Tensor) -> None:
    """Draws one token for each lane of `logits [B, vocab]` into `out [B] int32`: UNUSED for rows that are done, NOT_FINITE if so.

    The tables are those of `drivers.triton.layout`; the token to draw stands behind the row's position.
    """
    for lane, slot in enumerate(lanes.tolist()):
        _token, position, is_done, top_k, seed = ints[slot, :5].tolist()
        temperature, top_p, min_p = cuts[slot, :3].tolist()
        row = logits[lane].float()
        if is_done:
            out[lane] = UNUSED
        elif not bool(row.max().isfinite()):
            out[lane] = NOT_FINITE
        elif temperature == 0.0:
            out[lane] = int(row.argmax())
        else:
            narrowed = Cuts(
                torch.tensor([max(temperature, MIN_TEMPERATURE)], dtype=torch.float32),
                torch.tensor([top_k]),
                torch.tensor([top_p], dtype=torch.float64),
                torch.tensor([min_p], dtype=torch.float32),
            )
            number = torch.from_numpy(uniforms([seed], [position + 1]))
            out[lane] = int(draw(row.cpu().unsqueeze(0), narrowed, number)[0])


def prepare(lanes: Tensor, ints: Tensor, step: StepRows) -> None:
    """Fills a decode step with the rows of its lanes: tokens, positions, slots and rows (`step.tiles` are one for each lane, for ever)."""
    state = ints[lanes.long()]
    is_live = state[:, 2] == 0
    step.tokens.copy_(torch.where(is_live, state[:, 0], 0))
    step.positions.copy_(torch.where(is_live, state[:, 1], 0))
    step.slots.copy_(torch.where(is_live, lanes, -1))
    order = torch.arange(lanes.shape[0], dtype=torch.int32, device=lanes.device)
    step.rows.copy_(torch.stack((lanes, order, is_live.to(torch.int32), step.positions.to(torch.int32)), dim=1))


def append(lanes: Tensor, drawn: Tensor, ints: Tensor, stops: Tensor) -> None:
    """Makes drawn tokens the last ones of their rows; a stop token, or none at all (NOT_FINITE), ends the row."""
    slots = lanes.long()
    live = (ints[slots, 2] == 0).nonzero().squeeze(-1)
    slots, tokens = slots[live], drawn[live].long()
    is_over = (stops[slots] == tokens.unsqueeze(-1)).any(-1) | (tokens < 0)
    ints[slots, 0], ints[slots, 1], ints[slots, 2] = tokens.clamp_min(0), ints[slots, 1] + 1, is_over.long()


def copy_frames(arena: Tensor, granule_bytes: int, frame_bytes: int, pairs: Tensor) -> None:
    """Copies frames inside the arena: `pairs [n, 2] int64` of source and target; no frame is in two of them, unless as a source only."""
    found = [(target, arena[source * granule_bytes :][:frame_bytes].clone()) for source, target in pairs.tolist()]
    for target, frame in found:  # all are read before any is written, as they may be
        arena[target * granule_bytes :][:frame_bytes] = frame


def zero_frames(arena: Tensor, granule_bytes: int, frame_bytes: int, frames: Tensor) -> None:
    """Fills frames `[n] int64` with zeros."""
    for frame in frames.tolist():
        arena[frame * granule_bytes : frame * granule_bytes + frame_bytes] = 0


def clear_tails(arena: Tensor, granule_bytes: int, shape: KvShape, num_layers: int, cuts: Tensor) -> None:
    """Zeroes tokens from `first` on in every layer of a frame: `cuts [n, 2] int64` of frame and first."""
    for frame, first in cuts.tolist():
        for layer in range(num_layers):
            start = frame * granule_bytes + layer * shape.layer_bytes
            runs = [(start, shape.values_bytes, shape.head_dim * shape.dtype.itemsize)]
            if shape.is_quantized:
                runs.append((start + shape.values_bytes, 2 * shape.num_kv_heads * shape.page_tokens * SCALE_BYTES, SCALE_BYTES))
            for begin, size, token_bytes in runs:
                arena[begin : begin + size].view(-1, shape.page_tokens, token_bytes)[:, first:] = 0
