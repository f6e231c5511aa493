"""The attention kernel agrees with its definition, and that with float64; in one mode a token's bits do not depend on its company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drivers.triton import definitions
from drivers.triton.layout import AttentionShape, Heads
from tests.drivers.interpreted import KERNELS
from tests.drivers.triton.kernel_rig import Scene, error, make_scene

# NumPy's matmul reports NaNs in operands that hold none.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")

F32, BF16, F16, INT8, FP8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn
DECODE = ((1, 5), (1, 200), (0, 0))
Lengths = tuple[tuple[int, int], ...]
MIXED = ((1, 5), (7, 130), (0, 0), (33, 0))


def in_float64(scene: Scene, shape: AttentionShape) -> tuple[Tensor, Tensor]:
    """Attention of the used lanes by matrices of float64, token by token."""
    outs, lses = [], []
    for (slot, start, count, position), _ in zip(scene.step.rows.tolist(), scene.lengths, strict=True):
        keys, values = (part.double() for part in definitions.gather(scene.kv, scene.table[slot], position + count))
        for idx in range(count):
            low = max(0, position + idx - shape.window + 1) if shape.window else 0
            seen = slice(low, position + idx + 1)
            groups = scene.queries[start + idx].double().view(-1, scene.heads.num_kv_heads, scene.heads.head_dim)
            scores = torch.einsum("gjd,jkd->gjk", groups, keys[:, seen]) * shape.scale
            scores = shape.softcap * torch.tanh(scores / shape.softcap) if shape.softcap else scores
            outs.append(torch.einsum("gjk,jkd->gjd", scores.softmax(-1), values[:, seen]).flatten(0, 1))
            lses.append(scores.logsumexp(-1).flatten())
    return torch.stack(outs), torch.stack(lses)


@pytest.mark.parametrize(
    ("lengths", "heads", "dtypes", "tile", "masks", "tolerance"),
    [
        (DECODE, Heads(6, 2, 16), (F32, F32), 1, (0, 0.0), 1e-6),
        (DECODE, Heads(8, 2, 64), (BF16, BF16), 1, (0, 0.0), 1e-2),
        (DECODE, Heads(4, 4, 80), (F16, F16), 1, (100, 20.0), 1e-3),
        (DECODE, Heads(4, 2, 32), (BF16, INT8), 1, (0, 0.0), 1e-2),
        (DECODE, Heads(4, 2, 32), (BF16, FP8), 1, (0, 0.0), 1e-2),
        (MIXED, Heads(6, 2, 16), (F32, F32), 4, (0, 0.0), 1e-6),
        (MIXED, Heads(8, 2, 64), (BF16, BF16), 16, (64, 0.0), 1e-2),
        (MIXED, Heads(2, 2, 16), (F32, INT8), 64, (0, 5.0), 1e-6),
        (MIXED, Heads(2, 2, 16), (F32, F32), 8, (20, 0.0), 1e-6),
    ],
)
def test_attention_agrees_with_float64_and_with_its_definition(
    lengths: Lengths, heads: Heads, dtypes: tuple[torch.dtype, torch.dtype], tile: int, masks: tuple[int, float], tolerance: float
) -> None:
    scene = make_scene(lengths, heads, dtypes, tile)
    shape = scene.shape(*masks)

    out, lse = KERNELS.paged_attention(scene.queries, scene.kv, scene.table, scene.step, shape)
    plain, plain_lse = definitions.paged_attention(scene.queries, scene.kv, scene.table, scene.step, shape)
    exact, exact_lse = in_float64(scene, shape)

    assert max(error(out[scene.used], exact), error(plain[scene.used], exact)) < tolerance
    assert max(error(lse[scene.used], exact_lse), error(plain_lse[scene.used], exact_lse)) < 1e-5


def test_frames_before_the_window_may_name_nothing() -> None:
    scene = make_scene(((1, 200),), Heads(2, 1, 16), (F32, F32))
    shape = scene.shape(window=40)
    expected = in_float64(scene, shape)[0]
    scene.table[0, : (200 - 39) // 16] = -1

    assert error(KERNELS.paged_attention(scene.queries, scene.kv, scene.table, scene.step, shape)[0], expected) < 1e-6


@pytest.mark.parametrize("window", [0, 50])
def test_with_fixed_chunks_the_bits_of_a_token_do_not_depend_on_its_company(window: int) -> None:
    scene = make_scene(((1, 9), (40, 100), (1, 300)), Heads(4, 2, 16), (F32, F32), tile_tokens=8)
    shape = scene.shape(window, chunk=128)
    together = KERNELS.paged_attention(scene.queries, scene.kv, scene.table, scene.step, shape)[0]

    token = 1 + 24  # of the second row, by itself, as it would be decoded; NumPy's matmul adds in another order in other rows of a tile
    step = replace(
        scene.step,
        positions=scene.step.positions[token : token + 1],
        slots=scene.step.slots[token : token + 1],
        rows=torch.tensor([[1, 0, 1, 124]], dtype=torch.int32),
        tiles=torch.zeros(1, 2, dtype=torch.int32),
    )
    alone = KERNELS.paged_attention(scene.queries[token : token + 1], scene.kv, scene.table, step, shape)[0]

    assert torch.equal(alone[0], together[token])


def test_the_log_sum_exp_joins_two_halves_of_a_row() -> None:
    scene = make_scene(((1, 63),), Heads(2, 2, 16), (F32, F32))
    whole, lse = in_float64(scene, scene.shape())
    kept = scene.shape(window=32)
    late, late_lse = KERNELS.paged_attention(scene.queries, scene.kv, scene.table, scene.step, kept)
    before = replace(scene.step, rows=torch.tensor([[0, 0, 1, 31]], dtype=torch.int32))
    early, early_lse = KERNELS.paged_attention(scene.queries, scene.kv, scene.table, before, scene.shape())

    weights = torch.stack((late_lse - lse, early_lse - lse)).exp().unsqueeze(-1)

    assert error(late * weights[0] + early * weights[1], whole) < 1e-6
