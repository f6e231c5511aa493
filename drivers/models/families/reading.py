"""Reading a config in the spelling that nearly all families share.

Everything a config can say is either understood, known not to change inference, or refused by name before a byte of weights is read.
"""

from __future__ import annotations

from pathlib import Path

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.config import DecoderConfig, LayerConfig, groups_of
from drivers.models.families.family import Family, Reading
from drivers.models.fields import Fields
from drivers.models.rotary import RopeConfig
from drivers.ops.calls import Activation

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
}


def read_decoder(reading: Reading) -> DecoderConfig:
    """A config in the common spelling; a family refines what it has of its own."""
    fields, family, defaults = reading.fields, reading.family, reading.family.defaults
    heads = fields.integer("num_attention_heads", high=1 << 16)
    kv_heads = fields.integer("num_key_value_heads", heads if defaults.kv_heads is None else defaults.kv_heads, high=1 << 16)
    hidden = fields.integer("hidden_size", high=1 << 20)
    head_dim = _head_dim(fields, family, hidden, heads)
    if heads % kv_heads:
        raise ModelCorrupt(f"config.json: num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads}).")
    positions = fields.integer("max_position_embeddings", defaults.positions)
    rope = RopeConfig.read(fields, positions, defaults.theta, family.has_partial_rotary)
    check_rope(rope, head_dim)
    num_layers = fields.integer("num_hidden_layers", high=1 << 12)
    windows = family.windows(fields, num_layers) if family.windows else (None,) * num_layers
    layers = tuple(LayerConfig(window) for window in windows)
    has_attention_bias = fields.flag("attention_bias", False) if family.has_qkv_bias is None else False
    return DecoderConfig(
        architecture=reading.architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", high=1 << 22),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", defaults.eps),
        max_positions=declared_positions(reading.declared, positions, rope),
        rotary=(rope,),
        layers=layers,
        groups=groups_of(layers),
        attention_scale=head_dim**-0.5,
        activation=activation(fields, "hidden_act", "silu"),
        has_qkv_bias=has_attention_bias or family.has_qkv_bias is True,
        has_output_bias=has_attention_bias,
        has_mlp_bias=fields.flag("mlp_bias", False) if family.has_mlp_bias is None else family.has_mlp_bias,
        has_qk_norm=family.has_qk_norm,
        is_tied=fields.flag("tie_word_embeddings", defaults.is_tied),
        bos_token_id=(*fields.token_ids("bos_token_id"), None)[0],
        eos_token_ids=eos_token_ids(reading.directory, fields),
    )


def activation(fields: Fields, name: str, default: str) -> Activation:
    """The activation in a field. Raises: ModelUnsupported."""
    found = fields.text(name, default)
    if found not in ACTIVATIONS:
        raise fields.unsupported(name, " or ".join(ACTIVATIONS))
    return ACTIVATIONS[found]


def declared_positions(declared: int, positions: int, rope: RopeConfig | None = None) -> int:
    """The maximum that holds for this load. Raises: ModelUnsupported, if more is declared than the model can do."""
    longest = positions if rope is None else rope.longest(positions)
    if declared < 0 or declared > longest:
        with_rope = f", with rotary scaling {rope.rope_type!r}," if rope is not None else ""
        raise ModelUnsupported(f"max_positions is {declared}; this model{with_rope} goes up to {longest}.")
    return declared or positions


def eos_token_ids(directory: Path, fields: Fields) -> tuple[int, ...]:
    """Tokens that end a text, by the config and by what it says of generation."""
    ids = fields.token_ids("eos_token_id")
    generation = directory / "generation_config.json"
    if generation.is_file():
        ids += Fields.read(generation).token_ids("eos_token_id")
    return tuple(dict.fromkeys(ids))


def check_rope(rope: RopeConfig, head_dim: int) -> None:
    """The rotary settings fit the heads. Raises: ModelCorrupt."""
    dims = rope.num_dims(head_dim)
    if dims < 2 or dims % 2:
        raise ModelCorrupt(f"config.json: partial_rotary_factor leaves {dims} dimensions of {head_dim} to be turned; they go in pairs.")
    for name, factors in (("short_factor", rope.short_factors), ("long_factor", rope.long_factors)):
        if rope.rope_type == "longrope" and len(factors) != dims // 2:
            raise ModelCorrupt(f"config.json: {name} has {len(factors)} numbers; {dims // 2} are needed, one for each pair of dimensions.")


def _head_dim(fields: Fields, family: Family, hidden: int, heads: int) -> int:
    default = family.defaults.head_dim
    if not fields.has("head_dim") and default is None and hidden % heads:
        raise ModelCorrupt(
            f"config.json: hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}), and head_dim is missing."
        )
    head_dim = fields.integer("head_dim", default or hidden // heads, high=1 << 14)
    if head_dim % 2 or head_dim < 4:
        raise fields.unsupported("head_dim", "an even number of at least 4")
    return head_dim
