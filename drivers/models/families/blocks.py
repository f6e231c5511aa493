"""What most families have in common: ends, attention, gated feed-forward blocks, experts."""

from __future__ import annotations

from collections.abc import Sequence

from drivers.models.config import ExpertConfig
from drivers.models.families.sheet import Piece, Sheet
from drivers.models.parts import Arrangement, PartSpec, Source
from drivers.ops.calls import (
    ActivationSettings,
    AttentionSettings,
    EmbedSettings,
    HeadNormSettings,
    RopeSettings,
    SoftcapSettings,
)


def embedding(sheet: Sheet, stored: str = "embed_tokens") -> None:
    """The first segment: tokens to the residual stream."""
    config = sheet.config
    part = sheet.tensor("embedding", f"{stored}.weight", (config.vocab_size, config.hidden_size))
    sheet.call("embed", (["tokens"], ["residual"]), EmbedSettings(config.embedding_scale), [part])


def end(sheet: Sheet, norm: str = "norm") -> None:
    """The last segment: the residual stream to logits. A tied head is the table of the first segment."""
    config = sheet.config
    sheet.norm("residual", "x", "norm", norm)
    head = "embedding"
    if not config.is_tied:
        head, shape = "head", (config.vocab_size, config.hidden_size)
        sheet.parts.append(PartSpec(head, shape, (Source("lm_head.weight", shape),)))
    sheet.call("linear", (["x"], ["logits"]), None, [head])
    if config.logits_softcap:
        sheet.call("softcap", (["logits"], ["logits"]), SoftcapSettings(config.logits_softcap))


def attention(sheet: Sheet, x: str = "x", qkv: Sequence[Piece] = (), output: Piece | None = None) -> None:
    """From the hidden states `x` to `y`, through the pages. Pieces are given where they are not three projections and one."""
    config = sheet.config
    sheet.linear("qkv", (x, "qkv"), config.hidden_size, qkv or _qkv(sheet), config.has_qkv_bias)
    if config.has_qk_norm:
        _head_norm(sheet)
    if sheet.layer.table is not None:
        dims = config.rotary[sheet.layer.table].num_dims(config.head_dim)
        sheet.call("rope", (["qkv", "positions"], ["qkv"]), RopeSettings(sheet.layer.table, dims))
    settings = AttentionSettings(sheet.idx, config.group_of(sheet.idx), config.attention_scale, config.attention_softcap)
    sheet.call("kv_write", (["qkv"], []), settings)
    sheet.call("paged_attention", (["qkv"], ["mixed"]), settings)
    piece = output or Piece("self_attn.o_proj", config.hidden_size, Arrangement.OUTPUT_COLUMNS)
    sheet.linear("output", ("mixed", "y"), config.query_width, [piece], config.has_output_bias)


def gated_mlp(sheet: Sheet, x: str = "x", gate_up: Sequence[Piece] = ()) -> None:
    """From `x` to `y`: `down(f(gate(x)) * up(x))`."""
    config, inner = sheet.config, sheet.config.intermediate_size
    pieces = gate_up or [Piece("mlp.gate_proj", inner), Piece("mlp.up_proj", inner)]
    sheet.linear("gate_up", (x, "gate_up"), config.hidden_size, pieces, config.has_mlp_bias)
    sheet.call("act_mul", (["gate_up"], ["inner"]), ActivationSettings(config.activation))
    sheet.linear("down", ("inner", "y"), inner, [Piece("mlp.down_proj", config.hidden_size)], config.has_mlp_bias)


def experts(sheet: Sheet, config: ExpertConfig, stored: str, names: tuple[str, str, str]) -> None:
    """From `x` to `y` by the likeliest experts. `names` are those of an expert's gate, up and down."""
    hidden, inner, num = sheet.config.hidden_size, config.inner, config.settings.num_experts
    sheet.tensor("router", f"{stored}.gate.weight", (num, hidden))
    gate, up, down = names
    for part, stacked, shape in (("experts_gate_up", (gate, up), (inner, hidden)), ("experts_down", (down,), (hidden, inner))):
        sources = [
            Source(f"{sheet.prefix}{stored}.experts.{expert}.{name}.weight", shape, (expert * len(stacked) + idx) * shape[0])
            for expert in range(num)
            for idx, name in enumerate(stacked)
        ]
        sheet.parts.append(PartSpec(part, (num, len(stacked) * shape[0], shape[1]), tuple(sources)))
    sheet.call("experts", (["x"], ["y"]), config.settings, ["router", "experts_gate_up", "experts_down"])


def _qkv(sheet: Sheet) -> list[Piece]:
    width = sheet.config.kv_width
    query = Piece("self_attn.q_proj", sheet.config.query_width, Arrangement.QUERY_ROWS)
    return [query, Piece("self_attn.k_proj", width), Piece("self_attn.v_proj", width)]


def _head_norm(sheet: Sheet) -> None:
    config = sheet.config
    is_over_all = config.has_qk_norm_over_all_heads
    queries, keys = (config.query_width, config.kv_width) if is_over_all else (config.head_dim, config.head_dim)
    arrangement = Arrangement.QUERY_ROWS if is_over_all else Arrangement.PLAIN
    parts = [
        sheet.tensor("query_norm", "self_attn.q_norm.weight", (queries,), arrangement),
        sheet.tensor("key_norm", "self_attn.k_norm.weight", (keys,)),
    ]
    sheet.call("head_norm", (["qkv"], ["qkv"]), HeadNormSettings(config.norm_eps, config.has_unit_offset, is_over_all), parts)
