"""What GGUF's metadata says of a model, in the words of a Hugging Face config, so that a family reads it as it reads any other.

Every key of the model's own is either understood, known not to change inference, or refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from drivers.errors import ModelUnsupported
from drivers.gguf import GgufHeader

Shapes = Mapping[str, tuple[int, ...]]
Factors = Mapping[str, np.ndarray]
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
LLAMA = {**ATTENTION, **FEED_FORWARD, "ffn_norm": "post_attention_layernorm"}
POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GEMMA2 = {**ATTENTION, **FEED_FORWARD, **POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
PHI3 = {**LLAMA, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
MIXTRAL = {
    **LLAMA,
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
}
QWEN3_MOE = {
    **LLAMA,
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}


@dataclass(frozen=True, slots=True)
class GgufKind:
    """What one `general.architecture` stands for."""

    architecture: str
    names: Mapping[str, str]  # of a layer's tensors
    has_paired_heads: bool = False  # rows of queries and keys are in pairs
    keys: Sequence[str] = ()  # understood beside those of all
    given: Mapping[str, object] = field(default_factory=dict)  # fields that follow from the architecture


KINDS = {
    "llama": GgufKind("LlamaForCausalLM", {**LLAMA, **MIXTRAL}, True, ("expert_count", "expert_used_count")),
    "qwen2": GgufKind("Qwen2ForCausalLM", LLAMA),
    "qwen3": GgufKind("Qwen3ForCausalLM", LLAMA),
    "qwen3moe": GgufKind(
        "Qwen3MoeForCausalLM",
        QWEN3_MOE,
        keys=("expert_count", "expert_used_count", "expert_feed_forward_length"),
        given={"norm_topk_prob": True},
    ),
    "smollm3": GgufKind("SmolLM3ForCausalLM", LLAMA, True),
    "gemma": GgufKind("GemmaForCausalLM", LLAMA),
    "gemma2": GgufKind("Gemma2ForCausalLM", GEMMA2, keys=("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping")),
    "gemma3": GgufKind(
        "Gemma3ForCausalLM",
        GEMMA2,
        keys=("attention.sliding_window", "attention.sliding_window_pattern", "final_logit_softcapping", "rope.freq_base_swa"),
    ),
    "phi3": GgufKind("Phi3ForCausalLM", PHI3, keys=("attention.sliding_window", "rope.scaling.attn_factor")),
    "olmo2": GgufKind("Olmo2ForCausalLM", {**ATTENTION, **FEED_FORWARD, **POST_NORMS}),
}
KEYS = (
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon", "rope.freq_base",
    "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "attention.causal",
)  # fmt: skip


def config_of(header: GgufHeader, kind: GgufKind, shapes: Shapes, factors: Factors) -> dict[str, object]:
    """The fields of a config. `factors` are the scalings of rotary frequencies. Raises: ModelCorrupt, ModelUnsupported."""
    prefix = header.text("general.architecture") + "."
    known = {prefix + key for key in (*KEYS, *kind.keys)}
    for key in header.metadata:
        if key.startswith(prefix) and key not in known:
            raise ModelUnsupported(f"{header.path.name}: {key} is {str(header.metadata[key])[:100]}; it is not understood.")
    if not header.flag(prefix + "attention.causal", True):
        raise ModelUnsupported(f"{header.path.name}: {prefix}attention.causal is False; supported is True.")
    heads, hidden = _same(header, prefix + "attention.head_count"), header.integer(prefix + "embedding_length")
    head_dim = header.integer(prefix + "attention.key_length", hidden // max(1, heads))
    if header.integer(prefix + "attention.value_length", head_dim) != head_dim:
        raise header.wrong(prefix + "attention.value_length", f"attention.key_length, {head_dim}")
    values: dict[str, object] = {
        "architectures": [kind.architecture],
        "vocab_size": shapes.get("token_embd.weight", (header.integer(prefix + "vocab_size", 0),))[0],
        "hidden_size": hidden,
        "intermediate_size": _same(header, prefix + "feed_forward_length"),
        "num_hidden_layers": header.integer(prefix + "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _same(header, prefix + "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": header.integer(prefix + "context_length"),
        "rms_norm_eps": header.number(prefix + "attention.layer_norm_rms_epsilon"),
        "rope_theta": header.number(prefix + "rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ends(header),
        **kind.given,
    }
    _add_rope(values, header, prefix, factors)
    _add_own(values, header, prefix)
    return values


def _same(header: GgufHeader, key: str, default: int | None = None) -> int:
    """A number that all layers have, said once or for each. Raises: ModelCorrupt, ModelUnsupported."""
    found = header.metadata.get(key)
    if not isinstance(found, list):
        return header.integer(key, default)
    if len(set(map(str, found))) != 1 or not isinstance(found[0], int):
        raise ModelUnsupported(f"{header.path.name}: {key} is not the same for all layers; supported is one number.")
    return found[0]


def _ends(header: GgufHeader) -> list[int]:
    """Tokens that end a text, or a turn of it. Raises: ModelCorrupt."""
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys(header.integer(key) for key in keys if key in header.metadata))


def _add_rope(values: dict[str, object], header: GgufHeader, prefix: str, factors: Factors) -> None:
    """Rotary scaling, and how many dimensions are turned."""
    head_dim = values["head_dim"]
    assert isinstance(head_dim, int)
    dims = header.integer(prefix + "rope.dimension_count", head_dim)
    if dims != head_dim:
        values["partial_rotary_factor"] = dims / max(1, head_dim)
    original = header.integer(prefix + "rope.scaling.original_context_length", header.integer(prefix + "context_length"))
    short, long = factors.get("rope_factors_short.weight"), factors.get("rope_factors_long.weight")
    scaling = header.text(prefix + "rope.scaling.type", "none")
    factor = header.number(prefix + "rope.scaling.factor", 1.0)
    if "rope_freqs.weight" in factors:  # Llama 3: what its formula gives, whatever the length
        same = factors["rope_freqs.weight"].astype(float).tolist()
        values["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": same,
            "long_factor": same,
            "attention_factor": 1.0,
            "factor": 1.0,
        }
    elif short is not None and long is not None:
        lists = {"short_factor": short.astype(float).tolist(), "long_factor": long.astype(float).tolist()}
        scaled: dict[str, object] = {"rope_type": "longrope", **lists, "original_max_position_embeddings": original}
        if prefix + "rope.scaling.attn_factor" in header.metadata:
            scaled["attention_factor"] = header.number(prefix + "rope.scaling.attn_factor")
        values["rope_scaling"] = scaled
    elif scaling in ("linear", "yarn") and factor != 1.0:
        values["rope_scaling"] = {"rope_type": scaling, "factor": factor, "original_max_position_embeddings": original}
    elif scaling not in ("none", "linear", "yarn"):
        raise ModelUnsupported(f"{header.path.name}: {prefix}rope.scaling.type is {scaling!r}; supported are none, linear and yarn.")


def _add_own(values: dict[str, object], header: GgufHeader, prefix: str) -> None:
    """What only some architectures have."""
    experts = header.integer(prefix + "expert_count", 0)
    if experts:
        values |= {
            "num_experts_per_tok": header.integer(prefix + "expert_used_count"),
            "num_experts": experts,
            "num_local_experts": experts,
        }
        values["moe_intermediate_size"] = header.integer(prefix + "expert_feed_forward_length", 0) or values["intermediate_size"]
        if prefix == "llama.":
            values["architectures"] = ["MixtralForCausalLM"]
    window = header.integer(prefix + "attention.sliding_window", 0)
    values["sliding_window"] = window or None
    if not prefix.startswith("gemma"):
        return
    hidden, heads, layers = values["hidden_size"], values["num_attention_heads"], values["num_hidden_layers"]
    assert isinstance(hidden, int)
    assert isinstance(heads, int)
    # The file does not say: of both families only the largest model scales by the width of a head as if all heads filled the stream.
    is_largest = (prefix, layers) in (("gemma2.", 46), ("gemma3.", 62))
    values["query_pre_attn_scalar"] = hidden // max(1, heads) if is_largest else values["head_dim"]
    values["sliding_window_pattern"] = header.integer(prefix + "attention.sliding_window_pattern", 6)
    values["rope_local_base_freq"] = header.number(prefix + "rope.freq_base_swa", 10000.0)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        values[name] = header.number(prefix + name) if prefix + name in header.metadata else None
