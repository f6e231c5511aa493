"""What the questions about a GPU stand on: time on the device, models without files, steps over pages that nobody wrote."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drivers.contract import InspectSpec, LoadSpec, RowStart, Sampling
from drivers.cuda.loading import built
from drivers.cuda.model import CudaModel, planned
from drivers.cuda.runtime import DeviceArena, Runtime, Work
from drivers.models.families.table import read_config
from drivers.models.layout import decoder_segments
from drivers.models.loader import ModelFiles, PageShape
from drivers.models.runtime import Runtime as Form
from drivers.models.runtime import form_of

PAGE_TOKENS, GRANULE_BYTES = 16, 4096


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of the Llama kind."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    is_tied: bool = False

    @property
    def config(self) -> dict[str, object]:
        """As a directory would say it."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "intermediate_size": self.inner, "vocab_size": self.vocabulary, "max_position_embeddings": 16384, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "tie_word_embeddings": self.is_tied, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        }  # fmt: skip


EIGHT_B = ModelShape("8B", 4096, 32, 32, 8, 128, 14336, 128256)
ONE_B = ModelShape("1B", 2048, 16, 32, 8, 64, 8192, 128256, is_tied=True)
TINY = ModelShape("tiny", 64, 2, 4, 2, 16, 96, 320)


def seconds(runtime: Runtime, work: Work, rounds: int = 20, warm_ups: int = 3) -> float:
    """Device time of one round of work, the mean of several that are queued behind each other."""
    for _ in range(warm_ups):
        runtime.compute.run(work)
    begin = runtime.compute.record()
    for _ in range(rounds):
        runtime.compute.run(work)
    end = runtime.compute.record()
    end.wait()
    return max(end.seconds_since(begin), 1e-9) / rounds


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model with random weights, and room for rows of some length."""

    model: CudaModel
    arena: DeviceArena
    shape: ModelShape
    weight_bytes: int  # that a step reads
    kv_token_bytes: int
    num_parameters: int
    first_frame: int
    frame_granules: int
    num_pages: int  # of a row


def make_model(runtime: Runtime, shape: ModelShape, dtype: torch.dtype, room: tuple[int, int], *, is_fixed: bool = False) -> BenchModel:
    """Build a model in an arena of its own, with room for so many rows of so many tokens; `is_fixed`: no bit depends on the batch.

    Raises: DeviceOutOfMemory.
    """
    rows, tokens = room
    pages = PageShape(PAGE_TOKENS, GRANULE_BYTES, dtype)
    files = _files_of(shape, dtype)
    found = planned(files, pages, "", is_fixed=is_fixed)
    offsets, end = [], 0
    for segment in files.segments:
        offsets.append(end)
        end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
    num_pages = -(-tokens // PAGE_TOKENS)
    size_bytes = end + rows * num_pages * found.frames[0].size_bytes
    arena = DeviceArena(torch.zeros(size_bytes, dtype=torch.uint8, device=runtime.device), None)  # pages too: they have to be finite
    runtime.compute.run(lambda: _fill(arena.bytes[:end].view(dtype)))
    spec = LoadSpec(1, InspectSpec(shape.name), (1,), tuple(offsets))
    model = built(found, spec, arena, runtime, rows)
    num_parameters = sum(math.prod(part.shape) for segment in files.segments for part in segment.parts)
    table = 0 if shape.is_tied else shape.vocabulary * shape.hidden  # of the embedding, a row for each token is read
    return BenchModel(
        model=model,
        arena=arena,
        shape=shape,
        weight_bytes=(num_parameters - table) * dtype.itemsize,
        kv_token_bytes=shape.layers * 2 * shape.kv_heads * shape.head_dim * dtype.itemsize,
        num_parameters=num_parameters - table,
        first_frame=end // GRANULE_BYTES,
        frame_granules=found.frames[0].size_bytes // GRANULE_BYTES,
        num_pages=num_pages,
    )


def seat(bench: BenchModel, slot: int, position: int) -> RowStart:
    """A row that has so many tokens, the last of them pending, in pages of its own that lie apart."""
    order = np.random.default_rng(slot).permutation(bench.num_pages) + slot * bench.num_pages
    frames = tuple((bench.first_frame + order * bench.frame_granules).tolist())
    return RowStart(slot, 1, position, (5,), (frames,), Sampling(temperature=0.0))


def _files_of(shape: ModelShape, dtype: torch.dtype) -> ModelFiles:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape.config))
        config = read_config(Path(folder), 0)
    form = Form(dtype)
    return ModelFiles(config, decoder_segments(config, lambda part: form_of(part, form, ())), {}, form)


def _fill(weights: Tensor) -> None:
    """Random numbers small enough that logits are finite, in pieces: the generator makes floats of 32 bits first."""
    for piece in weights.split(1 << 28):
        piece.normal_(0.0, 0.02)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-9))


def boxed(work: Callable[[], Tensor], runtime: Runtime) -> Tensor:
    """What some work gives, on the host."""
    box: list[Tensor] = []
    runtime.compute.run(lambda: box.append(work().cpu()))
    runtime.compute.record().wait()
    return box[0]
