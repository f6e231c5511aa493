"""One small random model per family and variant, and how it is loaded. Heads of 16, so that native code covers them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import Tensor

from drivers.contract import InspectSpec
from drivers.models.config import DecoderConfig
from drivers.models.loader import Target, load_weights, open_model
from tests.drivers.cpu_rig import save_model

SHORT = [1.0, 1.1, 1.3, 1.5, 2.0, 2.5, 3.0, 4.0]
LONG = [1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0]
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
GLOBAL = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}
MOE: dict[str, object] = {"num_experts_per_tok": 3, "moe_intermediate_size": 48, "num_experts": 6}
GPT2: dict[str, object] = {
    "n_embd": 96, "n_head": 6, "n_layer": 3, "n_positions": 512, "activation_function": "gelu_new"
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}),
    "phi3": ("Phi3", {}),
    "phi3-window-partial": ("Phi3", {"sliding_window": 20, "partial_rotary_factor": 0.5}),
    "phi3-long": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "gemma": ("Gemma", {}),
    "gemma2": (
        "Gemma2",
        {"sliding_window": 24, "query_pre_attn_scalar": 40, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0},
    ),
    "gemma2-no-caps": ("Gemma2", {"sliding_window": 24, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": (
        "Gemma3",
        {
            "sliding_window": 20,
            "query_pre_attn_scalar": 40,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"full_attention": GLOBAL, "sliding_attention": LOCAL},
        },
    ),
    "olmo2": ("Olmo2", {"num_key_value_heads": 2}),
    "olmo2-untied-bias": ("Olmo2", {"tie_word_embeddings": False, "attention_bias": True}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "gpt2": ("GPT2", GPT2),
    "gpt2-inner": ("GPT2", {**GPT2, "n_inner": 80, "tie_word_embeddings": False, "activation_function": "gelu"}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 24}),
    "qwen3-moe": ("Qwen3Moe", {**MOE, "norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3-moe-raw": ("Qwen3Moe", {**MOE, "norm_topk_prob": False, "decoder_sparse_step": 2}),
}


def save_family(directory: Path, case: str, **changes: object) -> transformers.PreTrainedModel:
    """Write the model of a case, with some fields changed, and answer the reference implementation of it."""
    family, fields = FAMILIES[case]
    return save_model(directory, family, **{**fields, **changes})


def load_parts(directory: Path, max_positions: int = 0) -> tuple[DecoderConfig, tuple[dict[str, Tensor], ...]]:
    """A model in an arena of its own, in float32: its config, and the parts of each segment."""
    files = open_model(InspectSpec(str(directory), max_positions), torch.float32)
    offsets, end = [], 0
    for segment in files.segments:
        offsets.append(end)
        end += segment.size_bytes
    target = Target(torch.zeros(end, dtype=torch.uint8), offsets, torch.float32)
    segments = load_weights(files, target, lambda done, total: None)
    return files.config, tuple({name: part for name, part in parts.items() if isinstance(part, Tensor)} for parts in segments)
