"""A decoder in tiles: when tiles are taken, and that a token is the same in any of them, on as many threads as there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from drivers.cpu import CpuDriver
from drivers.cpu_runners import TorchRunner
from drivers.models.alone import TILE, AloneDecoder, rows_are_alike
from drivers.models.decoder import Decoder, StepBatch
from drivers.ops.calls import Call
from drivers.ops.fusion import Choice, Cover
from drivers.ops.implementation import Implementation
from drivers.ops.ragged import AttentionShape, RowSpan, plan_alone, plan_attention
from drivers.ops.running import Parts, Pass
from tests.drivers.cpu_rig import CpuRig

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo_model"
PAGES = np.arange(12)


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def decoder_of(dtype: str) -> Decoder:
    """The shipped model in torch, over pages of its own."""
    rig = CpuRig(DEMO, dtype=dtype, num_slabs=40, options={"native": "off"})
    torch.set_num_threads(2)  # the driver took one
    assert isinstance(rig.driver, CpuDriver)
    runner = rig.driver._loaded.models[1].runner
    assert isinstance(runner, TorchRunner)
    pages = [replace(kv, pages=torch.zeros(len(PAGES), *kv.pages.shape[1:], dtype=kv.pages.dtype)) for kv in runner.decoder.pages]
    return runner.decoder.with_pages(pages)


def computed(decoder: Decoder, chunks: list[int]) -> Tensor:
    """Hidden states and logits of a text that comes in chunks."""
    alone, kv = AloneDecoder.of(decoder, 0), decoder.pages[0]
    shape = AttentionShape(kv.pages.shape[1], None, torch.zeros_like(kv.pages.flatten(0, 1)))
    found, position = [], 0
    for count in chunks:
        positions = torch.arange(position, position + count)
        batch = StepBatch(positions * 7 % 500, positions, [plan_attention(shape, [RowSpan(0, count, position, PAGES)])])
        hidden = alone.forward(batch)
        found.append(torch.cat((hidden, alone.logits(hidden)), 1))
        position += count
    return torch.cat(found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_token_is_the_same_in_any_tile(dtype: str) -> None:
    decoder = decoder_of(dtype)
    whole = computed(decoder, [90])
    for chunks in ([1] * 90, [7] * 12 + [6], [33, 57], [TILE, TILE + 1, 57]):
        assert torch.equal(computed(decoder, chunks), whole)


def test_tiles_are_taken_only_where_all_rows_of_one_are_alike() -> None:
    decoder = decoder_of("float32")
    assert rows_are_alike(decoder, 0)

    def partial(call: Call, parts: Parts, step: Pass) -> None:
        running[call.op](call, parts, step)
        step.values[call.outputs[0]][3:, -1] *= 1.0001

    choices = decoder.cover.lists[1]
    running = {choice.call.op: choice.implementation.run for choice in choices if choice.implementation is not None}

    def spoiled(choice: Choice) -> Choice:
        assert isinstance(choice.implementation, Implementation)
        return replace(choice, implementation=replace(choice.implementation, run=partial)) if choice.call.op == "act_mul" else choice

    decoder.cover = Cover((decoder.cover.lists[0], tuple(map(spoiled, choices)), *decoder.cover.lists[2:]))
    assert not rows_are_alike(decoder, 0)


def test_every_token_attends_in_a_call_of_its_own() -> None:
    shape = AttentionShape(4, None, torch.zeros(20, 2, 1, 8))
    plan = plan_alone(shape, [RowSpan(idx, 1, position, PAGES) for idx, position in enumerate((3, 3, 40, 19))])
    assert [(bucket.start, bucket.num_rows, bucket.mask) for bucket in plan.buckets] == [(0, 1, None), (1, 1, None), (3, 1, None)]
    assert [(span.start, span.count) for span in plan.rest] == [(2, 1)], "more keys than the workspace holds"
