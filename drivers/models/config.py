"""What a model is, read from its Hugging Face `config.json` and refused where no code covers it.

Everything a config can say is either understood, known not to change inference, or refused by name before a byte of weights is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.fields import Fields
from drivers.models.rotary import RopeConfig

ACTIVATIONS = ("silu", "swish")
MISTRAL_WINDOW = 4096  # what `transformers` assumes where a Mistral config does not say


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture name implies beyond its config fields."""

    model_type: str
    has_qk_norm: bool = False
    has_qkv_bias: bool | None = None  # None: as `attention_bias` says
    has_mlp_bias: bool | None = False  # None: as `mlp_bias` says
    default_head_dim: int | None = None  # None: hidden_size / num_attention_heads
    default_positions: int = 2048
    default_kv_heads: int | None = None  # None: as many as there are heads
    windows: str = "none"  # "none", "all" layers, or "layers" as the config names them


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("llama", has_mlp_bias=None),
    "MistralForCausalLM": Family("mistral", has_qkv_bias=False, default_positions=4096 * 32, default_kv_heads=8, windows="all"),
    "Qwen2ForCausalLM": Family("qwen2", has_qkv_bias=True, default_positions=32768, default_kv_heads=32, windows="layers"),
    "Qwen3ForCausalLM": Family(
        "qwen3", has_qk_norm=True, default_head_dim=128, default_positions=32768, default_kv_heads=32, windows="layers"
    ),
}


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers whose pages live and die together because they see the same window."""

    layers: tuple[int, ...]
    window: int | None


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder-only transformer: every number that the forward pass and the loader need."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig
    groups: tuple[KvGroup, ...]
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    is_tied: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def num_queries_per_kv(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads


def read_config(directory: Path, max_positions: int) -> DecoderConfig:
    """Read a model directory's config; `max_positions` is the declared maximum, 0 for the config's own.

    Raises: ModelUnsupported, naming the field and what is supported; ModelCorrupt.
    """
    if not directory.is_dir():
        raise ModelCorrupt(f"{directory} is not a directory.")
    if not (directory / "config.json").is_file():
        raise ModelCorrupt(f"{directory} has no config.json; a Hugging Face model directory is needed.")
    fields = Fields.read(directory / "config.json")
    family, architecture = _family(fields)
    _refuse_unsupported(fields)
    heads = fields.integer("num_attention_heads", high=1 << 16)
    kv_heads = fields.integer("num_key_value_heads", heads if family.default_kv_heads is None else family.default_kv_heads, high=1 << 16)
    hidden = fields.integer("hidden_size", high=1 << 20)
    head_dim = _head_dim(fields, family, hidden, heads)
    if heads % kv_heads:
        raise ModelCorrupt(f"config.json: num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads}).")
    positions = fields.integer("max_position_embeddings", family.default_positions)
    rope = RopeConfig.read(fields, positions)
    num_layers = fields.integer("num_hidden_layers", high=1 << 12)
    has_attention_bias = fields.flag("attention_bias", False) if family.has_qkv_bias is None else False
    return DecoderConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", high=1 << 22),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_positions=_declared_positions(max_positions, positions, rope),
        rope=rope,
        groups=_groups(_windows(fields, family, num_layers)),
        has_qkv_bias=has_attention_bias or family.has_qkv_bias is True,
        has_output_bias=has_attention_bias,
        has_mlp_bias=fields.flag("mlp_bias", False) if family.has_mlp_bias is None else family.has_mlp_bias,
        has_qk_norm=family.has_qk_norm,
        is_tied=fields.flag("tie_word_embeddings", False),
        bos_token_id=(*fields.token_ids("bos_token_id"), None)[0],
        eos_token_ids=_eos_token_ids(directory, fields),
    )


def _family(fields: Fields) -> tuple[Family, str]:
    supported = ", ".join(FAMILIES)
    if not fields.has("architectures"):
        raise fields.unsupported("architectures", f"one of {supported}")
    names = fields.texts("architectures")
    if len(names) != 1 or names[0] not in FAMILIES:
        raise fields.unsupported("architectures", f"one of {supported}")
    family = FAMILIES[names[0]]
    if fields.text("model_type", family.model_type) != family.model_type:
        raise fields.unsupported("model_type", f"{family.model_type!r} with {names[0]}")
    return family, names[0]


def _refuse_unsupported(fields: Fields) -> None:
    if fields.has("auto_map"):
        raise fields.unsupported("auto_map", "none: code that comes with a model is never run")
    for name in ("quantization_config", "compression_config"):
        if fields.has(name):
            raise fields.unsupported(name, "none: weights in float32, bfloat16 or float16")
    if fields.text("hidden_act", "silu") not in ACTIVATIONS:
        raise fields.unsupported("hidden_act", " or ".join(ACTIVATIONS))
    if fields.flag("is_encoder_decoder", False):
        raise fields.unsupported("is_encoder_decoder", "false")


def _head_dim(fields: Fields, family: Family, hidden: int, heads: int) -> int:
    if not fields.has("head_dim") and family.default_head_dim is None and hidden % heads:
        raise ModelCorrupt(
            f"config.json: hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}), and head_dim is missing."
        )
    head_dim = fields.integer("head_dim", family.default_head_dim or hidden // heads, high=1 << 14)
    if head_dim % 2 or head_dim < 4:
        raise fields.unsupported("head_dim", "an even number of at least 4")
    return head_dim


def _declared_positions(declared: int, positions: int, rope: RopeConfig) -> int:
    longest = rope.longest(positions)
    if declared < 0 or declared > longest:
        raise ModelUnsupported(f"max_positions is {declared}; this model, with rotary scaling {rope.rope_type!r}, goes up to {longest}.")
    return declared or positions


def _windows(fields: Fields, family: Family, num_layers: int) -> tuple[int | None, ...]:
    """The sliding window of each layer; None where it sees everything."""
    if family.windows == "none":
        return (None,) * num_layers
    if family.windows == "all":
        is_named = "sliding_window" in fields.values
        window = fields.integer("sliding_window", MISTRAL_WINDOW) if fields.has("sliding_window") or not is_named else None
        return (window,) * num_layers
    if not fields.flag("use_sliding_window", False):
        kinds: tuple[str, ...] = fields.texts("layer_types") if fields.has("layer_types") else ()
        if "sliding_attention" in kinds:
            raise fields.unsupported("use_sliding_window", "true where layer_types names sliding_attention")
        return (None,) * num_layers
    return _windows_by_layer(fields, num_layers)


def _windows_by_layer(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    window = fields.integer("sliding_window", 4096) if fields.has("sliding_window") or "sliding_window" not in fields.values else None
    if fields.has("layer_types"):
        kinds = fields.texts("layer_types")
        if len(kinds) != num_layers:
            raise ModelCorrupt(f"config.json: layer_types names {len(kinds)} layers, num_hidden_layers is {num_layers}.")
        if set(kinds) - {"full_attention", "sliding_attention"}:
            raise fields.unsupported("layer_types", "full_attention or sliding_attention per layer")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = fields.integer("max_window_layers", 28, low=0)
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _groups(windows: tuple[int | None, ...]) -> tuple[KvGroup, ...]:
    layers: dict[int | None, list[int]] = {}
    for layer, window in enumerate(windows):
        layers.setdefault(window, []).append(layer)
    return tuple(KvGroup(tuple(members), window) for window, members in layers.items())


def _eos_token_ids(directory: Path, fields: Fields) -> tuple[int, ...]:
    ids = fields.token_ids("eos_token_id")
    generation = directory / "generation_config.json"
    if generation.is_file():
        ids += Fields.read(generation).token_ids("eos_token_id")
    return tuple(dict.fromkeys(ids))
