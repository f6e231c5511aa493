"""What a decoder is, in numbers and words: read from a model directory by its family (`drivers.models.families`)."""

from __future__ import annotations

from dataclasses import dataclass

from drivers.models.parts import PartSpec
from drivers.models.rotary import RopeConfig
from drivers.ops.calls import Activation, AttentionSettings, ExpertSettings


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers whose pages live and die together because they see the same window."""

    layers: tuple[int, ...]
    window: int | None


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What one layer has that others may not have."""

    window: int | None = None  # tokens that it sees; None: all
    table: int | None = 0  # of the rotary tables; None: it does not know positions
    has_experts: bool = False


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """The experts of those layers that have some."""

    settings: ExpertSettings
    inner: int  # columns of an expert's gate, and of its up


@dataclass(frozen=True, slots=True)
class Foreign:
    """A model that its own modules in `transformers` compute (`drivers.models.foreign`)."""

    version: str  # of transformers
    layers: str  # the name of the list of its layers
    segments: tuple[tuple[PartSpec, ...], ...]
    attention: tuple[AttentionSettings, ...]  # of each layer


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
    rotary: tuple[RopeConfig, ...]  # tables, by number; none where positions are learned
    layers: tuple[LayerConfig, ...]
    groups: tuple[KvGroup, ...]
    attention_scale: float
    activation: Activation
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    is_tied: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    has_layer_norm: bool = False  # else RMS norm
    has_unit_offset: bool = False  # norms add 1 to their weights
    has_qk_norm_over_all_heads: bool = False
    attention_softcap: float = 0.0
    logits_softcap: float = 0.0
    embedding_scale: float = 1.0
    num_positions: int = 0  # rows of the table of learned positions
    experts: ExpertConfig | None = None
    foreign: Foreign | None = None

    @property
    def num_queries_per_kv(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def query_width(self) -> int:
        """Rows of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Rows of the key projection, and of that of values."""
        return self.num_kv_heads * self.head_dim

    @property
    def rope_name(self) -> str:
        """Everything about positions that changes the bits of a page."""
        if self.foreign is not None:
            return f"transformers-{self.foreign.version}"
        return "+".join(rope.name(self.max_positions) for rope in self.rotary) or "learned"

    def group_of(self, layer: int) -> int:
        """The KV group that a layer belongs to."""
        return next(idx for idx, group in enumerate(self.groups) if layer in group.layers)


def groups_of(layers: tuple[LayerConfig, ...]) -> tuple[KvGroup, ...]:
    """Layers by their window, in the order in which the windows are first met."""
    members: dict[int | None, list[int]] = {}
    for idx, layer in enumerate(layers):
        members.setdefault(layer.window, []).append(idx)
    return tuple(KvGroup(tuple(indexes), window) for window, indexes in members.items())
