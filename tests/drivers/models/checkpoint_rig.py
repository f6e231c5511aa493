"""Checkpoints written by hand: a small Llama whose linears a test stores as it likes, and what a load makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from drivers.contract import InspectSpec
from drivers.models.checkpoint import read_checkpoint
from drivers.models.loader import ModelFiles, Target, arrange, load_weights
from drivers.models.runtime import Runtime
from drivers.models.weight import Weight

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 128, 192, 4, 2, 32, 70
CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 64,
}
LINEARS = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
Array = np.ndarray
# What is stored of a linear of so many rows and columns, and the weights that it stands for in float64.
Store = Callable[[np.random.Generator, int, int], tuple[dict[str, Array], Array]]


@dataclass(frozen=True)
class Written:
    """A checkpoint, and the truth about it."""

    path: Path
    weights: Mapping[str, Array]  # float64, by Hugging Face's names


def write_checkpoint(
    path: Path, quantization: Mapping[str, object], store: Store, change: Mapping[str, Array | None] | None = None
) -> Written:
    """Write a model whose linears `store` makes; `change` then replaces tensors by name, or leaves them out."""
    random = np.random.default_rng(3)
    tensors: dict[str, Array] = {}
    weights: dict[str, Array] = {}
    plain = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
    plain |= {f"model.layers.0.{name}_layernorm": (HIDDEN,) for name in ("input", "post_attention")}
    for name, shape in plain.items():
        tensors[f"{name}.weight"] = random.standard_normal(shape).astype(np.float32)
        weights[f"{name}.weight"] = tensors[f"{name}.weight"].astype(np.float64)
    for linear, (rows, columns) in LINEARS.items():
        name = f"model.layers.0.{linear}"
        parts, weights[f"{name}.weight"] = store(random, rows, columns)
        tensors |= {f"{name}.{part}": values for part, values in parts.items()}
    for name, replacement in (change or {}).items():
        assert name in tensors or replacement is not None
        tensors.pop(name, None)
        if replacement is not None:
            tensors[name] = replacement
    path.mkdir(exist_ok=True)
    fields = {**CONFIG, **({"quantization_config": quantization} if quantization else {})}
    (path / "config.json").write_text(json.dumps(fields))
    save_file({name: _tensor(values) for name, values in tensors.items()}, path / "model.safetensors")
    return Written(path, weights)


def _tensor(values: Array) -> Tensor:
    """uint8 stands for FP8, which numpy lacks."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.view(torch.float8_e4m3fn) if values.dtype == np.uint8 else tensor


def open_files(path: Path, runtime: Runtime) -> ModelFiles:
    """Inspect a checkpoint."""
    return arrange(read_checkpoint(InspectSpec(str(path))), runtime)


def load(path: Path, runtime: Runtime) -> tuple[ModelFiles, list[dict[str, Tensor]]]:
    """Load a checkpoint into an arena full of rubbish; answers each segment's parts in float32."""
    files = open_files(path, runtime)
    offsets = [0]
    for segment in files.segments:
        offsets.append(offsets[-1] + segment.size_bytes)
    arena = torch.full((offsets[-1],), 0xAA, dtype=torch.uint8)
    seen: list[tuple[int, int]] = []
    views = load_weights(files, Target(arena, offsets[:-1], runtime.dtype), lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    return files, [{name: plain(view) for name, view in parts.items()} for parts in views]


def plain(view: Tensor | Weight) -> Tensor:
    """A part as float32."""
    return view.dequantize(torch.float32) if isinstance(view, Weight) else view.float()


def expected(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The parts of the layer as they should be, in float64: query heads group-major, stacks stacked."""
    layer = {linear: weights[f"model.layers.0.{linear}.weight"] for linear in LINEARS}
    queries = HEADS // KV_HEADS
    q = layer["self_attn.q_proj"].reshape(KV_HEADS, queries, HEAD_DIM, HIDDEN).swapaxes(0, 1).reshape(-1, HIDDEN)
    o = layer["self_attn.o_proj"].reshape(HIDDEN, KV_HEADS, queries, HEAD_DIM).swapaxes(1, 2).reshape(HIDDEN, -1)
    return {
        "qkv.weight": np.concatenate([q, layer["self_attn.k_proj"], layer["self_attn.v_proj"]]),
        "output.weight": o,
        "gate_up.weight": np.concatenate([layer["mlp.gate_proj"], layer["mlp.up_proj"]]),
        "down.weight": layer["mlp.down_proj"],
    }
