"""Tiny models for the conformance suite: made on the spot from fixed random numbers, in a form that every driver can read.

A directory holds a Llama in Hugging Face form (`config.json`, `model.safetensors`) and, beside it, a `fake.json` for the fake driver.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VOCAB_SIZE = 128
MAX_POSITIONS = 256
HIDDEN = 64
HEADS = 2  # of 16 dimensions: fewer, and native kernels leave the model to their driver's plain path
KV_HEADS = 1
INTERMEDIATE = 64
LAYERS = 2
ADAPTER_RANK = 4

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HIDDEN // HEADS,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
# Two KV groups, one of them with a window, so that the suite sees drivers with more than one page table per row.
FAKE = {"vocab_size": VOCAB_SIZE, "max_positions": MAX_POSITIONS, "num_layers": LAYERS, "windows": [None, 64]}


def write_model(directory: Path) -> Path:
    """Write a model that has to run."""
    _write(directory, CONFIG, FAKE)
    return directory


def write_adapter(directory: Path, *, layers: int = LAYERS) -> Path:
    """Write a LoRA adapter of the model in PEFT form, or of one that has other layers; a driver that does not know adapters refuses it."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(21)
    kv = HIDDEN // HEADS * KV_HEADS
    linears = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.v_proj": (HIDDEN, kv), "mlp.down_proj": (INTERMEDIATE, HIDDEN)}
    tensors: dict[str, np.ndarray] = {}
    for layer in range(layers):
        for name, (columns, rows) in linears.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}."
            tensors[prefix + "lora_A.weight"] = random.normal(0.0, 0.5, (ADAPTER_RANK, columns)).astype(np.float32)
            tensors[prefix + "lora_B.weight"] = random.normal(0.0, 0.5, (rows, ADAPTER_RANK)).astype(np.float32)
    targets = [name.split(".")[1] for name in linears]
    config = {"peft_type": "LORA", "r": ADAPTER_RANK, "lora_alpha": ADAPTER_RANK, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "fake.json").write_text(json.dumps({"num_layers": layers, "weights_bytes": 3000}))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def write_refused_models(directory: Path) -> tuple[Path, ...]:
    """Write models that have to be refused: one of an unknown kind, one with broken files, one that is not there."""
    unknown, broken = directory / "unknown", directory / "broken"
    _write(unknown, {**CONFIG, "architectures": ["NoSuchForCausalLM"], "model_type": "no_such"}, {**FAKE, "no_such_field": 1})
    _write(broken, CONFIG, FAKE)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    (broken / "fake.json").write_text('{"vocab_size": 12')
    return unknown, broken, directory / "absent"


def _write(directory: Path, config: dict[str, object], fake: dict[str, object]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "fake.json").write_text(json.dumps(fake))
    save_file(_weights(), directory / "model.safetensors")


def _weights() -> dict[str, np.ndarray]:
    """Return weights with logits far enough apart that rounding does not change which one is largest."""
    random = np.random.default_rng(20)
    shapes = {"model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN), "lm_head.weight": (VOCAB_SIZE, HIDDEN)}
    kv = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qo"}
        shapes |= {prefix + f"self_attn.{name}_proj.weight": (kv, HIDDEN) for name in "kv"}
        shapes |= {prefix + f"mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[prefix + "mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
    weights = {name: random.normal(0.0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = [f"model.layers.{layer}.{name}_layernorm.weight" for layer in range(LAYERS) for name in ("input", "post_attention")]
    return weights | {name: np.ones(HIDDEN, dtype=np.float32) for name in [*norms, "model.norm.weight"]}
