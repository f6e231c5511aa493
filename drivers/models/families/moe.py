"""Mixtral and Qwen3-MoE: Llama's and Qwen3's layer, with a router and experts in the place of the feed-forward block."""

from __future__ import annotations

from dataclasses import replace

from drivers.errors import ModelCorrupt
from drivers.models.config import DecoderConfig, ExpertConfig
from drivers.models.families.blocks import attention, embedding, end, experts, gated_mlp
from drivers.models.families.family import Defaults, Family, Reading, every_layer
from drivers.models.families.reading import read_decoder
from drivers.models.families.sheet import Sheet
from drivers.models.fields import Fields
from drivers.ops.calls import ExpertSettings

MAX_EXPERTS = 1 << 12
MAX_TOGETHER = 1 << 17  # of all layers: each has tensors of its own, and their names have to be in memory


def _mixtral_layer(sheet: Sheet) -> None:
    _layer(sheet, "block_sparse_moe", ("w1", "w3", "w2"))


def _qwen3_layer(sheet: Sheet) -> None:
    _layer(sheet, "mlp", ("gate_proj", "up_proj", "down_proj"))


def _layer(sheet: Sheet, stored: str, names: tuple[str, str, str]) -> None:
    sheet.norm("residual", "x", "input_norm", "input_layernorm")
    attention(sheet)
    sheet.add("y")
    sheet.norm("residual", "x", "inner_norm", "post_attention_layernorm")
    if sheet.layer.has_experts and sheet.config.experts is not None:
        experts(sheet, sheet.config.experts, stored, names)
    else:
        gated_mlp(sheet)
    sheet.add("y")


def _read_mixtral(reading: Reading) -> DecoderConfig:
    config, fields = read_decoder(reading), reading.fields
    num = fields.integer("num_local_experts", 8, high=MAX_EXPERTS)
    settings = ExpertSettings(num, _top_k(fields, num, 2), True, config.activation)
    layers = tuple(replace(layer, has_experts=True) for layer in config.layers)
    return replace(config, layers=layers, experts=ExpertConfig(settings, config.intermediate_size))


def _read_qwen3(reading: Reading) -> DecoderConfig:
    config, fields = read_decoder(reading), reading.fields
    num = fields.integer("num_local_experts", fields.integer("num_experts", 128, low=0, high=MAX_EXPERTS), low=0, high=MAX_EXPERTS)
    if not num:
        raise fields.unsupported("num_experts", "at least 1")
    step, dense = fields.integer("decoder_sparse_step", 1), fields.integers("mlp_only_layers")
    settings = ExpertSettings(num, _top_k(fields, num, 8), fields.flag("norm_topk_prob", False), config.activation)
    layers = tuple(replace(layer, has_experts=idx not in dense and (idx + 1) % step == 0) for idx, layer in enumerate(config.layers))
    return replace(config, layers=layers, experts=ExpertConfig(settings, fields.integer("moe_intermediate_size", 768, high=1 << 22)))


def _qwen3_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", False):
        return (None,) * num_layers
    return every_layer(fields, num_layers)


def _top_k(fields: Fields, num: int, default: int) -> int:
    if num * fields.integer("num_hidden_layers") > MAX_TOGETHER:
        raise ModelCorrupt(
            f"{fields.origin}: {num} experts in each of {fields.integer('num_hidden_layers')} layers are more than {MAX_TOGETHER}."
        )
    top_k = fields.integer("num_experts_per_tok", default, high=MAX_EXPERTS)
    if top_k > num:
        raise ModelCorrupt(f"{fields.origin}: num_experts_per_tok is {top_k}; there are {num} experts.")
    return top_k


MIXTRAL = Family(
    "mixtral",
    _read_mixtral,
    _mixtral_layer,
    embedding,
    end,
    defaults=Defaults(positions=4096 * 32, kv_heads=8, theta=1e6, eps=1e-5),
    windows=every_layer,
    has_qkv_bias=False,
)
QWEN3_MOE = Family(
    "qwen3_moe",
    _read_qwen3,
    _qwen3_layer,
    embedding,
    end,
    defaults=Defaults(positions=32768, kv_heads=4),
    windows=_qwen3_windows,
    has_qk_norm=True,
)
