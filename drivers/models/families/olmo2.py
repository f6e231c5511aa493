"""OLMo 2: norms behind the blocks only, and norms of queries and keys over all heads together."""

from __future__ import annotations

from dataclasses import replace

from drivers.models.config import DecoderConfig
from drivers.models.families.blocks import attention, embedding, end, gated_mlp
from drivers.models.families.family import Defaults, Family, Reading
from drivers.models.families.reading import read_decoder
from drivers.models.families.sheet import Sheet


def _layer(sheet: Sheet) -> None:
    attention(sheet, "residual")
    sheet.norm("y", "normed", "output_norm", "post_attention_layernorm")
    sheet.add("normed")
    gated_mlp(sheet, "residual")
    sheet.norm("y", "normed", "down_norm", "post_feedforward_layernorm")
    sheet.add("normed")


def _read(reading: Reading) -> DecoderConfig:
    return replace(read_decoder(reading), has_qk_norm_over_all_heads=True)


OLMO2 = Family("olmo2", _read, _layer, embedding, end, defaults=Defaults(eps=1e-5), has_qk_norm=True)
