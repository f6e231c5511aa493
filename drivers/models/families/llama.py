"""Llama and those that differ from it by a word: Mistral (windows), Qwen2 (biases), Qwen3 (norms of heads), SmolLM3 (layers that do not
know positions), Phi-3 (projections stored together)."""

from __future__ import annotations

from dataclasses import replace

from drivers.errors import ModelCorrupt
from drivers.models.config import DecoderConfig, LayerConfig
from drivers.models.families.blocks import attention, embedding, end, gated_mlp
from drivers.models.families.family import Defaults, Family, Reading, every_layer, kinds_of_layers
from drivers.models.families.reading import read_decoder
from drivers.models.families.sheet import Piece, Sheet
from drivers.models.fields import Fields
from drivers.models.parts import Arrangement

MISTRAL_WINDOW = 4096  # what `transformers` assumes where a Mistral config does not say


def pre_norm_layer(sheet: Sheet) -> None:
    """Norm, attention, norm, feed-forward block."""
    sheet.norm("residual", "x", "input_norm", "input_layernorm")
    attention(sheet)
    sheet.add("y")
    sheet.norm("residual", "x", "inner_norm", "post_attention_layernorm")
    gated_mlp(sheet)
    sheet.add("y")


def _phi3_layer(sheet: Sheet) -> None:
    """Llama's layer, of fewer stored tensors: query, key and value in one, gate and up in one."""
    config = sheet.config
    queries, rest, inner = config.query_width, 2 * config.kv_width, config.intermediate_size
    stored = "self_attn.qkv_proj"
    qkv = (
        Piece(stored, queries, Arrangement.QUERY_ROWS, 0, queries + rest),
        Piece(stored, rest, Arrangement.PLAIN, queries, queries + rest),
    )
    sheet.norm("residual", "x", "input_norm", "input_layernorm")
    attention(sheet, qkv=qkv)
    sheet.add("y")
    sheet.norm("residual", "x", "inner_norm", "post_attention_layernorm")
    gated_mlp(sheet, gate_up=[Piece("mlp.gate_up_proj", 2 * inner)])
    sheet.add("y")


def _mistral_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    if "sliding_window" not in fields.values:
        return (MISTRAL_WINDOW,) * num_layers
    return every_layer(fields, num_layers)


def qwen_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    """By `layer_types`, or from `max_window_layers` on; none unless `use_sliding_window` says so."""
    if not fields.flag("use_sliding_window", False):
        if fields.has("layer_types") and "sliding_attention" in fields.texts("layer_types"):
            raise fields.unsupported("use_sliding_window", "true where layer_types names sliding_attention")
        return (None,) * num_layers
    window = fields.integer("sliding_window", 4096) if fields.has("sliding_window") or "sliding_window" not in fields.values else None
    if fields.has("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in kinds_of_layers(fields, num_layers))
    first = fields.integer("max_window_layers", 28, low=0)
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _no_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    if fields.flag("use_sliding_window", False):
        raise fields.unsupported("use_sliding_window", "false")
    return (None,) * num_layers


def _read_smollm3(reading: Reading) -> DecoderConfig:
    config, fields = read_decoder(reading), reading.fields
    interval = fields.integer("no_rope_layer_interval", 4)
    turned = fields.integers("no_rope_layers") or tuple(int((layer + 1) % interval != 0) for layer in range(config.num_layers))
    if len(turned) != config.num_layers:
        raise ModelCorrupt(f"config.json: no_rope_layers names {len(turned)} layers, num_hidden_layers is {config.num_layers}.")
    return replace(config, layers=tuple(LayerConfig(table=0 if flag else None) for flag in turned))


LLAMA = Family("llama", read_decoder, pre_norm_layer, embedding, end, has_mlp_bias=None)
MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    has_qkv_bias=False,
    has_mlp_bias=False,
    windows=_mistral_windows,
    defaults=Defaults(positions=4096 * 32, kv_heads=8),
)
QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    has_qkv_bias=True,
    has_mlp_bias=False,
    windows=qwen_windows,
    defaults=Defaults(positions=32768, kv_heads=32),
)
QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    has_qk_norm=True,
    has_qkv_bias=None,
    defaults=Defaults(head_dim=128, positions=32768, kv_heads=32),
)
SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3",
    read=_read_smollm3,
    windows=_no_windows,
    defaults=Defaults(positions=32768, kv_heads=4, theta=2e6, is_tied=True),
)
PHI3 = replace(
    LLAMA,
    model_type="phi3",
    layer=_phi3_layer,
    has_qkv_bias=False,
    has_mlp_bias=False,
    windows=every_layer,
    has_partial_rotary=True,
    defaults=Defaults(positions=4096, eps=1e-5),
)
