"""Gemma 1, 2 and 3 (text): norms that add 1 to their weights, scaled embeddings, GeGLU; since 2 norms on both sides of each block, and
layers that see a window between layers that see everything."""

from __future__ import annotations

import math
from dataclasses import replace

from drivers.errors import ModelUnsupported
from drivers.models.config import DecoderConfig, LayerConfig, groups_of
from drivers.models.families.blocks import attention, embedding, end, gated_mlp
from drivers.models.families.family import Defaults, Family, Reading, kinds_of_layers
from drivers.models.families.llama import pre_norm_layer
from drivers.models.families.reading import check_rope, read_decoder
from drivers.models.families.sheet import Sheet
from drivers.models.fields import Fields
from drivers.models.rotary import DEFAULT_THETA, RopeConfig
from drivers.ops.calls import Activation

GLOBAL_THETA = 1e6  # of Gemma 3's layers without a window, where its config does not say
FINAL_CAP = "final_logit_softcapping"


def _layer(sheet: Sheet) -> None:
    """A norm before and a norm behind each block."""
    sheet.norm("residual", "x", "input_norm", "input_layernorm")
    attention(sheet)
    sheet.norm("y", "normed", "output_norm", "post_attention_layernorm")
    sheet.add("normed")
    sheet.norm("residual", "x", "inner_norm", "pre_feedforward_layernorm")
    gated_mlp(sheet)
    sheet.norm("y", "normed", "down_norm", "post_feedforward_layernorm")
    sheet.add("normed")


def _read_gemma(reading: Reading) -> DecoderConfig:
    """What all three have in common."""
    fields = reading.fields
    if fields.flag("use_bidirectional_attention", False):
        raise fields.unsupported("use_bidirectional_attention", "false")
    config = read_decoder(reading)
    return replace(config, embedding_scale=math.sqrt(config.hidden_size), has_unit_offset=True, activation=Activation.GELU_TANH)


def _read_gemma1(reading: Reading) -> DecoderConfig:
    for name in ("hidden_act", "hidden_activation"):
        if reading.fields.text(name, "gelu") not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):  # all of them have meant the approximation
            raise reading.fields.unsupported(name, "gelu_pytorch_tanh")
    return _read_gemma(reading)


def _read_gemma2(reading: Reading) -> DecoderConfig:
    config, fields = _with_windows(reading, 2), reading.fields
    return replace(config, attention_softcap=_cap(fields, "attn_logit_softcapping", 50.0), logits_softcap=_cap(fields, FINAL_CAP, 30.0))


def _read_gemma3(reading: Reading) -> DecoderConfig:
    fields = reading.fields
    if fields.has("attn_logit_softcapping"):
        raise fields.unsupported("attn_logit_softcapping", "null")
    config = _with_windows(reading, fields.integer("sliding_window_pattern", 6))
    tables = _tables(fields)
    for rope in tables:
        check_rope(rope, config.head_dim)
    layers = tuple(replace(layer, table=0 if layer.window is None else 1) for layer in config.layers)
    return replace(config, rotary=tables, layers=layers, logits_softcap=_cap(fields, FINAL_CAP, 0.0))


def _with_windows(reading: Reading, pattern: int) -> DecoderConfig:
    """Layers of two kinds: by name, or every so many a layer without a window; and the scale and activation that go with them."""
    fields = reading.fields
    if fields.text("hidden_activation", "gelu_pytorch_tanh") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise fields.unsupported("hidden_activation", "gelu_pytorch_tanh")
    config = _read_gemma(reading)
    window = fields.integer("sliding_window", 4096)
    kinds = tuple("sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(config.num_layers))
    if fields.has("layer_types"):
        kinds = kinds_of_layers(fields, config.num_layers)
    layers = tuple(LayerConfig(window if kind == "sliding_attention" else None) for kind in kinds)
    scale = fields.number("query_pre_attn_scalar", 256.0)
    if scale <= 0:
        raise fields.unsupported("query_pre_attn_scalar", "a number above 0")
    return replace(config, layers=layers, groups=groups_of(layers), attention_scale=scale**-0.5)


def _cap(fields: Fields, name: str, default: float) -> float:
    """A softcap; null is none. Raises: ModelCorrupt."""
    return default if name not in fields.values else fields.number(name, 0.0)


def _tables(fields: Fields) -> tuple[RopeConfig, RopeConfig]:
    """Of layers without and with a window: named by kind, or in fields of their own."""
    positions = fields.integer("max_position_embeddings", 131072)
    inner = fields.inner("rope_parameters") or Fields({}, fields.origin)
    named = [inner.inner(kind) for kind in ("full_attention", "sliding_attention")]
    everywhere = named[0] or fields.inner("rope_scaling") or Fields({}, fields.origin)
    nearby = named[1] or Fields({}, fields.origin)
    tables = []
    for place, name, default in ((everywhere, "rope_theta", GLOBAL_THETA), (nearby, "rope_local_base_freq", DEFAULT_THETA)):
        theta = place.number("rope_theta", fields.number(name, default, low=1.0), low=1.0)
        tables.append(RopeConfig.read_type(fields, place, (theta, positions)))
    if any(table.rope_type in ("dynamic", "yarn") for table in tables):
        raise ModelUnsupported(f"{fields.origin}: rope_type of layers of two kinds is supported where it does not change the length.")
    return tables[0], tables[1]


GEMMA = Family(
    "gemma",
    _read_gemma1,
    pre_norm_layer,
    embedding,
    end,
    defaults=Defaults(head_dim=256, positions=8192, kv_heads=16, is_tied=True),
)
GEMMA2 = replace(GEMMA, model_type="gemma2", read=_read_gemma2, layer=_layer, defaults=replace(GEMMA.defaults, kv_heads=4))
GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    read=_read_gemma3,
    has_qk_norm=True,
    defaults=replace(GEMMA2.defaults, positions=131072, theta=GLOBAL_THETA),
)
