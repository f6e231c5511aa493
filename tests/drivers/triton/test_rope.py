"""Rotation, head norm and the write to pages agree with their definition, and that with plain formulas."""

from __future__ import annotations

import pytest
import torch

from drivers.triton import definitions
from drivers.triton.layout import Heads
from tests.drivers.interpreted import KERNELS
from tests.drivers.triton.kernel_rig import Scene, error, make_scene

F32, BF16, F16, INT8, FP8 = torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn
Dtypes = tuple[torch.dtype, torch.dtype]
LENGTHS = ((1, 5), (7, 40), (0, 0), (1, 0))


def angles_of(num_dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of 64 positions."""
    angles = torch.arange(64).unsqueeze(-1) * torch.linspace(1.0, 0.01, num_dims // 2)
    return angles.cos(), angles.sin()


def pages_of(scene: Scene, arena: torch.Tensor) -> torch.Tensor:
    """Keys and values of all rows, one behind the other."""
    found = [
        definitions.gather(scene.on(arena), scene.table[slot], count + position) for slot, (count, position) in enumerate(scene.lengths)
    ]
    return torch.cat([torch.stack(pair).flatten() for pair in found])


@pytest.mark.parametrize(
    ("dtypes", "num_dims", "has_norm", "tolerance"),
    [
        ((F32, F32), 16, False, 1e-6),
        ((F32, F32), 8, True, 1e-6),
        ((BF16, BF16), 16, True, 1e-2),
        ((F32, INT8), 16, True, 1e-6),
        ((F16, FP8), 16, False, 0.13),  # a step of fp8 next to its largest value: the interpreter rounds otherwise
    ],
)
def test_the_kernel_agrees_with_the_definition(
    dtypes: tuple[torch.dtype, torch.dtype], num_dims: int, has_norm: bool, tolerance: float
) -> None:
    scene = make_scene(LENGTHS, Heads(6, 2, 16), dtypes)
    weights = torch.randn(2, 16, generator=torch.Generator().manual_seed(1)).to(dtypes[0])
    norms = (weights[0], weights[1], 1e-5, True) if has_norm else None
    place = (scene.heads, scene.table, scene.step)
    found = [(scene.qkv.clone(), scene.kv.arena.clone()) for _ in range(2)]

    KERNELS.rope_kv_write(found[0][0], angles_of(num_dims), norms, scene.on(found[0][1]), place)
    definitions.rope_kv_write(found[1][0], angles_of(num_dims), norms, scene.on(found[1][1]), place)

    queries = [qkv.view(-1, 10, 16)[:, :6] for qkv, _ in found]
    assert error(queries[0], queries[1]) < max(1e-6, min(tolerance, 1e-2))
    assert error(pages_of(scene, found[0][1]), pages_of(scene, found[1][1])) < tolerance
    assert not torch.equal(found[0][1], scene.kv.arena)


def test_an_unused_lane_is_written_nowhere_and_others_only_to_their_page() -> None:
    scene = make_scene(LENGTHS, Heads(2, 2, 16), (F32, F32))
    before = pages_of(scene, scene.kv.arena)
    scene.step.slots.fill_(-1)

    KERNELS.rope_kv_write(scene.qkv.clone(), angles_of(16), None, scene.kv, (scene.heads, scene.table, scene.step))

    assert torch.equal(pages_of(scene, scene.kv.arena), before)


def test_a_turn_keeps_lengths_and_dot_products_depend_on_the_distance() -> None:
    scene = make_scene(((33, 0),), Heads(1, 1, 16), (F32, F32))
    row = torch.randn(48, generator=torch.Generator().manual_seed(2))
    qkv = row.repeat(33, 1)
    definitions.rope_kv_write(qkv, angles_of(16), None, scene.kv, (scene.heads, scene.table, scene.step))
    keys = definitions.gather(scene.kv, scene.table[0], 33)[0][0]
    products = qkv[:, :16] @ keys.t()

    assert torch.allclose(keys.norm(dim=-1), row[16:32].norm().expand(33), atol=1e-5)
    assert torch.allclose(products.diagonal(-5), products[5, 0].expand(28), atol=1e-4)
