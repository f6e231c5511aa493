"""What a family is: how its config is read, and how each segment is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drivers.errors import ModelCorrupt
from drivers.models.config import DecoderConfig
from drivers.models.families.sheet import Sheet
from drivers.models.fields import Fields
from drivers.models.rotary import DEFAULT_THETA

Windows = Callable[[Fields, int], tuple[int | None, ...]]


@dataclass(frozen=True, slots=True)
class Reading:
    """A config that is being read."""

    fields: Fields
    family: Family
    directory: Path
    declared: int  # the declared maximum of positions; 0: the config's own

    @property
    def architecture(self) -> str:
        """The name in the config."""
        return self.fields.texts("architectures")[0]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What `transformers` takes where a config of the family does not say."""

    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    positions: int = 2048
    kv_heads: int | None = None  # None: as many as there are heads
    theta: float = DEFAULT_THETA
    eps: float = 1e-6
    is_tied: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture name implies beyond its config fields."""

    model_type: str
    read: Callable[[Reading], DecoderConfig]
    layer: Callable[[Sheet], None]
    first: Callable[[Sheet], None]
    last: Callable[[Sheet], None]
    defaults: Defaults = Defaults()
    windows: Windows | None = None  # of each layer; None: no layer has one
    has_qk_norm: bool = False
    has_qkv_bias: bool | None = None  # None: as `attention_bias` says
    has_mlp_bias: bool | None = False  # None: as `mlp_bias` says
    has_partial_rotary: bool = False
    prefix: str = "model."  # of the stored names; a checkpoint of the body alone lacks it
    layers: str = "layers"  # the stored name of the list of layers


def every_layer(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    """`sliding_window` for all layers; none where that is missing."""
    return (fields.integer("sliding_window") if fields.has("sliding_window") else None,) * num_layers


def kinds_of_layers(fields: Fields, num_layers: int) -> tuple[str, ...]:
    """`layer_types`, one per layer. Raises: ModelCorrupt, ModelUnsupported."""
    kinds = fields.texts("layer_types")
    if len(kinds) != num_layers:
        raise ModelCorrupt(f"config.json: layer_types names {len(kinds)} layers, num_hidden_layers is {num_layers}.")
    if set(kinds) - {"full_attention", "sliding_attention"}:
        raise fields.unsupported("layer_types", "full_attention or sliding_attention per layer")
    return kinds
