"""A short prefill, timed: what a token of input costs on a model that was just loaded."""

from __future__ import annotations

import time

import numpy as np
import torch

from drivers.arena import Arena
from drivers.cpu_model import CpuModel
from drivers.models.decoder import StepBatch
from drivers.ops.ragged import RowSpan, plan_attention
from drivers.ops.reference import LayerKv

TOKENS = 64


def prefill_pace(model: CpuModel, granule_bytes: int) -> float:
    """Seconds per token of an input of `TOKENS` tokens, on pages of its own; the second of two passes, as the first warms up.

    The model must not run yet, because its workspace is used; and it must not be streamed.
    """
    decoder, page_tokens = model.decoder, model.frames[0].page_tokens
    num_tokens = min(TOKENS, decoder.config.max_positions)
    num_pages = -(-num_tokens // page_tokens)
    arenas = [Arena(num_pages * frame.size_bytes, granule_bytes) for frame in model.frames]
    pages = {
        layer: LayerKv(arena.layer_pages(frame, idx), decoder.heads)
        for arena, frame, group in zip(arenas, model.frames, decoder.config.groups, strict=True)
        for idx, layer in enumerate(group.layers)
    }
    trial = decoder.with_pages([pages[layer] for layer in range(decoder.config.num_layers)])
    tables = [np.arange(num_pages) * (frame.size_bytes // granule_bytes) for frame in model.frames]
    batch = StepBatch(
        tokens=torch.arange(num_tokens) % decoder.config.vocab_size,
        positions=torch.arange(num_tokens),
        attention=[plan_attention(shape, [RowSpan(0, num_tokens, 0, table)]) for shape, table in zip(model.attention, tables, strict=True)],
    )
    trial.forward(batch)
    began = time.perf_counter()
    trial.forward(batch)
    return (time.perf_counter() - began) / num_tokens
