"""GPT-2: learned positions, layer norms, biases everywhere, linears stored transposed, words of its own for every number."""

from __future__ import annotations

from drivers.errors import ModelCorrupt
from drivers.models.config import DecoderConfig, LayerConfig, groups_of
from drivers.models.families.blocks import attention, embedding, end
from drivers.models.families.family import Family, Reading
from drivers.models.families.reading import activation, declared_positions, eos_token_ids
from drivers.models.families.sheet import Piece, Sheet
from drivers.models.parts import Arrangement
from drivers.ops.calls import ActivationSettings

STORED = Arrangement.TRANSPOSED


def _first(sheet: Sheet) -> None:
    embedding(sheet, "wte")
    config = sheet.config
    part = sheet.tensor("position_embedding", "wpe.weight", (config.num_positions, config.hidden_size))
    sheet.call("embed_positions", (["residual", "positions"], ["residual"]), None, [part])


def _layer(sheet: Sheet) -> None:
    config = sheet.config
    hidden, inner = config.hidden_size, config.intermediate_size
    sheet.norm("residual", "x", "input_norm", "ln_1")
    attention(sheet, qkv=[Piece("attn.c_attn", 3 * hidden, STORED)], output=Piece("attn.c_proj", hidden, STORED))
    sheet.add("y")
    sheet.norm("residual", "x", "inner_norm", "ln_2")
    sheet.linear("up", ("x", "up"), hidden, [Piece("mlp.c_fc", inner, STORED)], has_bias=True)
    sheet.call("act", (["up"], ["inner"]), ActivationSettings(config.activation))
    sheet.linear("down", ("inner", "y"), inner, [Piece("mlp.c_proj", hidden, STORED)], has_bias=True)
    sheet.add("y")


def _last(sheet: Sheet) -> None:
    end(sheet, "ln_f")


def _read(reading: Reading) -> DecoderConfig:
    fields = reading.fields
    for name, supported in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False)):
        if fields.flag(name, supported) is not supported:
            raise fields.unsupported(name, str(supported).lower())
    hidden, heads = fields.integer("n_embd", 768, high=1 << 20), fields.integer("n_head", 12, high=1 << 16)
    if hidden % heads:
        raise ModelCorrupt(f"config.json: n_embd ({hidden}) is not a multiple of n_head ({heads}).")
    positions = fields.integer("n_positions", 1024)
    layers = (LayerConfig(table=None),) * fields.integer("n_layer", 12, high=1 << 12)
    return DecoderConfig(
        architecture=reading.architecture,
        vocab_size=fields.integer("vocab_size", 50257),
        hidden_size=hidden,
        intermediate_size=fields.integer("n_inner", 4 * hidden, high=1 << 22),
        num_layers=len(layers),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        max_positions=declared_positions(reading.declared, positions),
        rotary=(),
        layers=layers,
        groups=groups_of(layers),
        attention_scale=(hidden // heads) ** -0.5,
        activation=activation(fields, "activation_function", "gelu_new"),
        has_qkv_bias=True,
        has_output_bias=True,
        has_mlp_bias=True,
        has_qk_norm=False,
        is_tied=fields.flag("tie_word_embeddings", True),
        bos_token_id=(*fields.token_ids("bos_token_id"), None)[0],
        eos_token_ids=eos_token_ids(reading.directory, fields),
        has_layer_norm=True,
        num_positions=positions,
    )


GPT2 = Family("gpt2", _read, _layer, _first, _last, prefix="transformer.", layers="h")
