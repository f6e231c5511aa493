"""Models for measuring, with random weights, as Hugging Face directories: the SmolLM2-135M shape, and one whose layers are large."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY = 576, 30, 9, 3, 1536, 49152
HEAD_DIM = HIDDEN // HEADS
MAX_POSITIONS = 2048

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate_size": INTERMEDIATE,
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
    """Write the model into `folder`/135m and return that path; the weights are the same every time."""
    path = folder / "135m"
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    weights = {"model.embed_tokens.weight": _matrix(VOCABULARY, HIDDEN), "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)}
    for layer in range(LAYERS):
        weights |= _layer(f"model.layers.{layer}.")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": max_positions}))
    return path


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
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    sizes |= {"head_dim": hidden // heads, "intermediate_size": inner, "vocab_size": vocabulary}
    (path / "config.json").write_text(json.dumps({**CONFIG, **sizes, "torch_dtype": "float32"}))
    return path


def prompt(seed: int, num_tokens: int) -> list[int]:
    """Random token ids, another text for every seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, VOCABULARY, (num_tokens,), generator=generator).tolist()


def _matrix(rows: int, columns: int) -> torch.Tensor:
    return (torch.randn(rows, columns) * 0.02).to(torch.bfloat16)


def _layer(prefix: str) -> dict[str, torch.Tensor]:
    kv = KV_HEADS * HEAD_DIM
    return {
        f"{prefix}self_attn.q_proj.weight": _matrix(HIDDEN, HIDDEN),
        f"{prefix}self_attn.k_proj.weight": _matrix(kv, HIDDEN),
        f"{prefix}self_attn.v_proj.weight": _matrix(kv, HIDDEN),
        f"{prefix}self_attn.o_proj.weight": _matrix(HIDDEN, HIDDEN),
        f"{prefix}mlp.gate_proj.weight": _matrix(INTERMEDIATE, HIDDEN),
        f"{prefix}mlp.up_proj.weight": _matrix(INTERMEDIATE, HIDDEN),
        f"{prefix}mlp.down_proj.weight": _matrix(HIDDEN, INTERMEDIATE),
        f"{prefix}input_layernorm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
        f"{prefix}post_attention_layernorm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }
