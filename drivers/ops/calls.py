"""What a model computes, as a list of calls of named ops: the form between a model's family and the code that runs it.

    family (drivers.models.description) --> calls --> fusion (drivers.ops.fusion) --> calls of fused ops --> whoever runs them

A **call** reads and writes named values of one step and weights of one segment. Values are flat over the tokens of a step, `[T, width]`.
A list of calls runs from top to bottom; nothing in it depends on the device. Layers of a model are lists of their own, because weights
come and go by layer; the value `residual` is all that passes from one layer to the next.

The primitive ops, in the order in which a decoder meets them (definitions: `drivers.ops.reference`):

    op               reads -> writes                parts                     settings
    embed            tokens -> residual             embedding                 EmbedSettings
    embed_positions  residual, positions -> residual  position_embedding
    rms_norm         x -> y                         weight                    NormSettings
    layer_norm       x -> y                         weight, bias              NormSettings
    linear           x -> y                         weight [, bias]
    head_norm        qkv -> qkv                     query_norm, key_norm      HeadNormSettings
    rope             qkv, positions -> qkv                                    RopeSettings
    kv_write         qkv ->                                                   AttentionSettings
    paged_attention  qkv -> mixed                                             AttentionSettings
    add              x, residual -> residual
    act_mul          gate_up -> y                                             ActivationSettings
    act              x -> y                                                   ActivationSettings
    experts          x -> y                         router, experts_gate_up, experts_down  ExpertSettings
    softcap          logits -> logits                                         SoftcapSettings

A fused op has a call of its own, with the parts and the settings of the calls that it stands for, one behind the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Activation(Enum):
    """The nonlinear function of a feed-forward block."""

    SILU = "silu"
    GELU = "gelu"  # exact, by the error function
    GELU_TANH = "gelu_tanh"  # its approximation by tanh


@dataclass(frozen=True, slots=True)
class EmbedSettings:
    """`scale` multiplies the rows of the table (Gemma: the square root of the width, rounded to the compute dtype)."""

    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class NormSettings:
    """`has_unit_offset`: the stored weight is what is to be added to 1 (Gemma)."""

    eps: float
    has_unit_offset: bool = False


@dataclass(frozen=True, slots=True)
class HeadNormSettings:
    """RMS norm of queries and of keys, before they are turned: of each head by itself, or over all heads together (OLMo 2)."""

    eps: float
    has_unit_offset: bool = False
    is_over_all_heads: bool = False


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """`table` is an index into the rotary tables of the model; the first `num_dims` of each head are turned."""

    table: int
    num_dims: int


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """`layer` counts all layers. Scores are `q . k * scale`, then `softcap * tanh(score / softcap)` unless `softcap` is 0."""

    layer: int
    group: int  # of KV: its pages, and its window
    scale: float
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class ActivationSettings:
    """Which function; `act_mul` gives `f(gate) * up` of `[T, 2 * inner]`, gate first."""

    function: Activation


@dataclass(frozen=True, slots=True)
class ExpertSettings:
    """A router's softmax over `num_experts`, of which the `top_k` likeliest are run.

    Their shares add up to 1 where `is_normalized`; else they are those of the whole softmax.
    """

    num_experts: int
    top_k: int
    is_normalized: bool
    function: Activation


@dataclass(frozen=True, slots=True)
class SoftcapSettings:
    """`cap * tanh(x / cap)`."""

    cap: float


Settings = (
    EmbedSettings
    | NormSettings
    | HeadNormSettings
    | RopeSettings
    | AttentionSettings
    | ActivationSettings
    | ExpertSettings
    | SoftcapSettings
)


@dataclass(frozen=True, slots=True)
class Call:
    """One op on values of a step. A value that is read and written is changed in place."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[str, ...] = ()  # weights of the segment that the call belongs to
    settings: tuple[Settings, ...] = ()  # of each op that it stands for, in order, where that has any
    stands_for: tuple[Call, ...] = ()  # of a fused op: the primitive calls, run one after the other, that it means


@dataclass(frozen=True, slots=True)
class Description:
    """A decoder as calls. `first` makes `residual` of `tokens` and `positions`, `last` makes `logits` of `residual`."""

    first: tuple[Call, ...]
    layers: tuple[tuple[Call, ...], ...]
    last: tuple[Call, ...]
