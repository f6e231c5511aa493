"""Everything that the CUDA driver can launch on a device: its own code is run, over models that span what it chooses between.

    number formats x formats of pages x padded widths of heads      a plain model, in every combination
    number formats x forms of quantized weights                     the same, of one width, and a mixture (with offsets in bfloat16 alone)
    everything else that a family may have                          once

Every model is built, warmed up and captured as in a load, and runs steps of every kind. What choices there are is asked of the driver.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch

from drivers.contract import InspectSpec, LoadSpec, Plan, RowRun, RowStart, Sampling
from drivers.cuda.adapters import CudaAdapter
from drivers.cuda.driver import DTYPES, kv_quants_of
from drivers.cuda.loading import built, make_ready, warm_up
from drivers.cuda.model import CudaModel, planned
from drivers.cuda.options import Options
from drivers.cuda.steps import StepQueue
from drivers.models.config import DecoderConfig
from drivers.models.families.table import read_config
from drivers.models.layout import decoder_segments
from drivers.models.loader import ModelFiles, PageShape
from drivers.models.parts import PartSpec
from drivers.models.runtime import FLOAT_PARTS, TABLES, form_of
from drivers.models.runtime import Runtime as Form
from drivers.models.storage import Kind, Storage
from drivers.rows import RowTable
from drivers.triton.layout import LORA_COLUMNS, MAX_HEAD_DIM
from tests.drivers.triton.launch import Launch, recorded
from tests.drivers.triton.meta_runtime import MetaRuntime

GRANULE_BYTES, MAX_ROWS, MAX_STEP_TOKENS = 4096, 48, 2048
WIDTHS = tuple(1 << power for power in range(4, MAX_HEAD_DIM.bit_length()))  # every padded width of heads
FORMS = tuple(Storage(kind, group, has_offsets) for kind in (Kind.INT8, Kind.INT4) for group in (0, 64) for has_offsets in (False, True))
LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2560, "num_hidden_layers": 1, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "vocab_size": 32000, "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
}  # fmt: skip

SHARED: dict[str, object] = {"num_attention_heads": 64, "num_key_value_heads": 1}  # one KV head for as many queries as a tile holds


@dataclass(frozen=True)
class Model:
    """A model, and how it is run. `form`: of its linears, where they are quantized."""

    config: Mapping[str, object] = field(default_factory=dict)  # what differs from `LLAMA`
    dtype: torch.dtype = torch.bfloat16
    kv_quant: str = ""
    form: Storage | None = None
    quant: str = ""
    page_tokens: int = 16
    has_adapters: bool = False
    batch_invariant: bool = False

    @property
    def files(self) -> ModelFiles:
        """As if it had been read."""
        config = read(json.dumps({**LLAMA, **self.config}))
        form = Form(self.dtype, quant=self.quant)
        return ModelFiles(config, decoder_segments(config, self._form_of), {}, form)

    def _form_of(self, part: PartSpec) -> Storage:
        if self.form is None or len(part.shape) < 2 or part.name in (*FLOAT_PARTS, *TABLES):
            return form_of(part, Form(self.dtype, quant=self.quant), ())
        return self.form


@cache
def read(config: str) -> DecoderConfig:
    """A config that a directory would say."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config)
        return read_config(Path(folder), 0)


def of_kind(architecture: str, kind: str, **changes: object) -> dict[str, object]:
    """A config of another family."""
    return {"architectures": [architecture], "model_type": kind, "num_hidden_layers": 2, **changes}


FAMILIES = (
    of_kind("MistralForCausalLM", "mistral", sliding_window=4096),
    of_kind("Qwen2ForCausalLM", "qwen2"),
    of_kind("Qwen3ForCausalLM", "qwen3"),
    of_kind("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=4),
    of_kind("Phi3ForCausalLM", "phi3", num_attention_heads=32, num_key_value_heads=32, head_dim=96, partial_rotary_factor=0.75),
    of_kind("GemmaForCausalLM", "gemma", num_attention_heads=8, num_key_value_heads=1, head_dim=256, hidden_act="gelu_pytorch_tanh"),
    of_kind("Gemma2ForCausalLM", "gemma2", head_dim=256, sliding_window=4096, hidden_activation="gelu_pytorch_tanh"),
    of_kind("Gemma3ForCausalLM", "gemma3_text", head_dim=256, sliding_window=512, num_hidden_layers=6, hidden_activation="gelu_new"),
    of_kind("Olmo2ForCausalLM", "olmo2"),
    of_kind("GPT2LMHeadModel", "gpt2", n_embd=768, n_head=12, n_layer=1, n_positions=1024, activation_function="gelu_new"),
)  # fmt: skip
MIXTURES = (
    of_kind("MixtralForCausalLM", "mixtral", num_local_experts=8, num_experts_per_tok=2, num_hidden_layers=1),
    of_kind("Qwen3MoeForCausalLM", "qwen3_moe", num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=False),
)


def models(kv_quants: tuple[str, ...]) -> Iterator[Model]:
    """Models that span what the driver chooses between."""
    for dtype in DTYPES.values():
        for kv_quant in ("", *kv_quants):
            yield from (Model({"head_dim": width}, dtype, kv_quant) for width in WIDTHS)
            yield Model({}, dtype, kv_quant, batch_invariant=True)
            yield from (Model({"head_dim": width, **SHARED}, dtype, kv_quant) for width in WIDTHS)
        yield from (Model(dtype=dtype, form=form) for form in FORMS)
        yield Model(dtype=dtype, quant="int8", has_adapters=True)
        for num in (8, 16):  # KV heads: tiles hold twice, four times as many tokens
            yield Model({"num_attention_heads": 16, "num_key_value_heads": num}, dtype, has_adapters=True)
        yield from (Model(MIXTURES[0], dtype, form=form) for form in (None, *FORMS) if form is None or not form.has_offsets)
    yield from (Model(MIXTURES[0], form=form) for form in FORMS if form.has_offsets)
    yield from (Model(config) for config in (*FAMILIES, *MIXTURES))
    yield Model({"hidden_act": "gelu"})
    yield Model(FAMILIES[-1], quant="int8")
    yield Model(FAMILIES[-1], batch_invariant=True)
    yield Model({"head_dim": 20, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 60, "vocab_size": 300})


def launches(architecture: int) -> Iterator[Launch]:
    """Everything that the driver can launch there, with repetitions."""
    runtime = MetaRuntime(architecture)
    for model in models(kv_quants_of(runtime)):
        yield from launched(model, runtime)


def launched(model: Model, runtime: MetaRuntime, max_rows: int = MAX_ROWS) -> list[Launch]:
    """What one model launches, from its load to steps of every kind."""
    return recorded(lambda: _run(model, runtime, max_rows))


def ready(model: Model, runtime: MetaRuntime, max_rows: int) -> CudaModel:
    """A model as a load leaves it. Launches what a load launches."""
    found = planned(model.files, PageShape(model.page_tokens, GRANULE_BYTES, model.dtype), model.kv_quant, is_fixed=model.batch_invariant)
    assert not found.cover.gaps, found.cover.gaps
    offsets, end = [], 0
    for segment in found.files.segments:
        offsets.append(end)
        end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
    arena = runtime.arena(1, end + (1 << 24))
    spaces = tuple(range(len(found.frames)))
    made = built(found, LoadSpec(1, InspectSpec(""), spaces, tuple(offsets)), arena, runtime, max_rows)
    warm_up(runtime, made, (MAX_STEP_TOKENS, GRANULE_BYTES))
    made.graphs.capture()
    return made


def _run(model: Model, runtime: MetaRuntime, max_rows: int) -> None:
    with torch.inference_mode():
        made = ready(model, runtime, max_rows)
        if model.has_adapters:
            make_ready(runtime, made, [CudaAdapter(1, np.ones((1, LORA_COLUMNS), dtype=np.int64), ())], ((max_rows, 64), Options()))
        for counts in ((1, 70), (5, 3, 1), (1, 1)):  # of rows that share a step
            run_step(made, runtime, counts, max_rows)


def run_step(made: CudaModel, runtime: MetaRuntime, counts: tuple[int, ...], max_rows: int) -> None:
    """A step of rows that compute so many tokens, and one behind it."""
    page_tokens = made.frames[0].layer.page_tokens
    table = RowTable(len(counts), MAX_STEP_TOKENS, page_tokens)
    frames = tuple((0,) * -(-(max(counts) + 2) // page_tokens) for _ in made.frames)
    starts = tuple(RowStart(slot, 1, 0, (5,) * count, frames, Sampling()) for slot, count in enumerate(counts))
    runs = tuple(RowRun(slot, count) for slot, count in enumerate(counts))
    made.seats.start(table.apply(Plan(1, 1, starts=starts, runs=runs, num_steps=2)))
    [share] = table.take(0)
    StepQueue(runtime, made, 1, max_rows).take(share, 0, 2)
