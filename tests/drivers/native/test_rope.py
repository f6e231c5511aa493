"""Norm, rotation and the write of keys and values in one, against each by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drivers.native.attention import HeadNorm, NativeAttention, native_attention
from drivers.native.isa import levels
from drivers.ops.ragged import HeadShape, RowSpan
from tests.drivers.native.attention_rig import Bed

HEADS = HeadShape(6, 2, 48)
KINDS = (torch.float32, torch.bfloat16, torch.int8)


@pytest.fixture(params=levels())
def native(request: pytest.FixtureRequest) -> NativeAttention:
    found = native_attention(request.param)
    assert found is not None
    return found


def angles(num_tokens: int, num_dims: int) -> tuple[Tensor, Tensor]:
    turned = torch.arange(3.0, 3.0 + num_tokens)[:, None] / 100.0 ** torch.linspace(0, 1, num_dims // 2 or 1)[None, : num_dims // 2]
    return turned.cos().contiguous(), turned.sin().contiguous()


def turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """By definition, in float64: `heads [T, n, D]`."""
    half = cos.shape[-1]
    wide = heads.double()
    low, high, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    c, s = cos.double()[:, None], sin.double()[:, None]
    return torch.cat([low * c - high * s, high * c + low * s, rest], dim=-1)


def normed(heads: Tensor, weight: Tensor, *, over_all: bool) -> Tensor:
    flat = heads.double().flatten(1) if over_all else heads.double()
    return (flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6) * weight.double()).view(heads.shape)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("num_dims", [48, 16, 10, 0])
@pytest.mark.parametrize("norm", ["none", "heads", "all"])
def test_queries_and_keys_are_normed_and_turned_and_kept(native: NativeAttention, dtype: torch.dtype, num_dims: int, norm: str) -> None:
    bed = Bed(native, dtype, HEADS)
    qkv = bed.numbers(21, 10, 48)
    weights = [bed.numbers(n * 48 if norm == "all" else 48) for n in (6, 2)]
    head_norm = None if norm == "none" else HeadNorm(weights[0], weights[1], 1e-6, norm == "all")
    cos, sin = angles(21, num_dims)
    context = bed.context(30)  # only for its frames
    rows = [RowSpan(0, 20, 10, context.frames), RowSpan(20, 1, 5, bed.context(16).frames)]
    found = qkv.clone()
    native.rope_kv_write(bed.pages, rows, found, (cos, sin), head_norm)

    queries, keys, values = qkv[:, :6], qkv[:, 6:8], qkv[:, 8:]
    if norm != "none":
        queries, keys = (normed(part, weight, over_all=norm == "all") for part, weight in zip((queries, keys), weights, strict=True))
    torch.testing.assert_close(found[:, :6].double(), turned(queries, cos, sin), rtol=0, atol=3e-6)
    torch.testing.assert_close(found[:, 6:8].double(), turned(keys, cos, sin), rtol=0, atol=3e-6)
    assert torch.equal(found[:, 8:], values)
    pages = bed.pages.arena.clone()
    native.write(bed.pages, rows, found[:, 6:8].contiguous(), values.contiguous())
    assert torch.equal(bed.pages.arena, pages)


def test_a_token_by_itself_is_turned_to_the_same_bits(native: NativeAttention) -> None:
    bed = Bed(native, torch.float32, HEADS)
    frames = bed.context(16).frames
    norm = HeadNorm(bed.numbers(48), bed.numbers(48), 1e-6)
    qkv, (cos, sin) = bed.numbers(9, 10, 48), angles(9, 20)
    together = qkv.clone()
    native.rope_kv_write(bed.pages, [RowSpan(0, 9, 0, frames)], together, (cos, sin), norm)
    for token in range(9):
        alone = qkv[token : token + 1].clone()
        own = cos[token : token + 1].clone(), sin[token : token + 1].clone()
        native.rope_kv_write(bed.pages, [RowSpan(0, 1, token, frames)], alone, own, norm)
        assert torch.equal(alone[0], together[token])
