"""Models for measuring, with random weights, as Hugging Face directories: the shapes of SmolLM2, and one whose layers are large."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCABULARY = 49152
HEAD_DIM = 64
MAX_POSITIONS = 2048


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that tell one model of the family from another."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int


SMALL = Shape("135m", 576, 30, 9, 3, 1536)
MIDDLE = Shape("360m", 960, 32, 15, 5, 2560)
HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = SMALL.hidden, SMALL.layers, SMALL.heads, SMALL.kv_heads, SMALL.intermediate

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def make_135m(folder: Path, max_positions: int = MAX_POSITIONS) -> Path:
    """Write the model of 135 million parameters into `folder`/135m and return that path; the weights are the same every time."""
    return _make(folder, SMALL, max_positions)


def make_360m(folder: Path) -> Path:
    """The same with 360 million parameters."""
    return _make(folder, MIDDLE, MAX_POSITIONS)


def _make(folder: Path, shape: Shape, max_positions: int) -> Path:
    path = folder / shape.name
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    weights = {
        "model.embed_tokens.weight": _matrix(VOCABULARY, shape.hidden),
        "model.norm.weight": torch.ones(shape.hidden, dtype=torch.bfloat16),
    }
    for layer in range(shape.layers):
        weights |= _layer(f"model.layers.{layer}.", shape)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    sizes = _sizes(shape.hidden, shape.layers, (shape.heads, shape.kv_heads), shape.intermediate)
    (path / "config.json").write_text(json.dumps({**CONFIG, **sizes, "max_position_embeddings": max_positions}))
    return path


def _sizes(hidden: int, layers: int, heads: tuple[int, int], intermediate: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": hidden // heads[0],
        "intermediate_size": intermediate,
    }


def make_wide(folder: Path) -> Path:
    """Write a model of 16 layers of 58 MiB in float32 into `folder`/wide and return that path: layers so large that copying them counts."""
    hidden, inner, heads, kv_heads, layers, vocabulary = 1024, 4096, 16, 4, 16, 4096
    path = folder / "wide"
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns) * 0.02

    weights = {"model.embed_tokens.weight": matrix(vocabulary, hidden), "model.norm.weight": torch.ones(hidden)}
    kv = kv_heads * hidden // heads
    shapes = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        weights |= {f"{prefix}self_attn.{name}_proj.weight": matrix(*shape) for name, shape in shapes.items()}
        weights |= {f"{prefix}mlp.{name}_proj.weight": matrix(inner, hidden) for name in ("gate", "up")}
        weights |= {f"{prefix}{name}.weight": torch.ones(hidden) for name in ("input_layernorm", "post_attention_layernorm")}
        weights[f"{prefix}mlp.down_proj.weight"] = matrix(hidden, inner)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    sizes = {**_sizes(hidden, layers, (heads, kv_heads), inner), "vocab_size": vocabulary}
    (path / "config.json").write_text(json.dumps({**CONFIG, **sizes, "torch_dtype": "float32"}))
    return path


def prompt(seed: int, num_tokens: int) -> list[int]:
    """Random token ids, another text for every seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, VOCABULARY, (num_tokens,), generator=generator).tolist()


def _matrix(rows: int, columns: int) -> torch.Tensor:
    return (torch.randn(rows, columns) * 0.02).to(torch.bfloat16)


def _layer(prefix: str, shape: Shape) -> dict[str, torch.Tensor]:
    hidden, inner, kv = shape.hidden, shape.intermediate, shape.kv_heads * HEAD_DIM
    return {
        f"{prefix}self_attn.q_proj.weight": _matrix(hidden, hidden),
        f"{prefix}self_attn.k_proj.weight": _matrix(kv, hidden),
        f"{prefix}self_attn.v_proj.weight": _matrix(kv, hidden),
        f"{prefix}self_attn.o_proj.weight": _matrix(hidden, hidden),
        f"{prefix}mlp.gate_proj.weight": _matrix(inner, hidden),
        f"{prefix}mlp.up_proj.weight": _matrix(inner, hidden),
        f"{prefix}mlp.down_proj.weight": _matrix(hidden, inner),
        f"{prefix}input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        f"{prefix}post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
    }
