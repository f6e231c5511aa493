"""What lowering starts from and what it makes: the shape of a model, and the program that the native engine runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drivers.models.storage import Kind
from drivers.native.records import OpRecord

ELSEWHERE = -1  # a layer whose pages lie on another device: the program has it, and it is never run here
PLACES = ("qkv", "output", "gate_up", "down")  # that adapters change, as drivers.models.adapter names them


class NotCovered(Exception):
    """There is no native code for an op or a shape of this model; the message says which."""


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """The angle of dimension pair i at position p is `p * inverse_frequencies[i]`; cos and sin are multiplied by `factor`."""

    inverse_frequencies: np.ndarray  # [num_dims / 2] float32
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class KvGroupShape:
    """Pages of one KV group."""

    frame_bytes: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a program needs to know beside calls and weights."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    page_tokens: int
    granule_bytes: int
    kv_kind: Kind  # FLOAT32, BFLOAT16, INT8 or FLOAT8
    groups: tuple[KvGroupShape, ...]
    layer_bytes: tuple[int, ...]  # of each layer: where its part begins in a frame of its group, or ELSEWHERE
    rotary: tuple[RotaryTable, ...] = ()

    @property
    def qkv_width(self) -> int:
        """Queries, keys and values of one token."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


@dataclass(frozen=True, slots=True)
class Program:
    """A lowered model."""

    ops: tuple[OpRecord, ...]
    layers: tuple[int, ...]  # index of the first op of each layer, and of the first behind the layers
    widths: tuple[int, ...]  # of each value; value 0 is the residual
    logits: int  # value
    shape: ModelShape
    num_segments: int

    @property
    def hidden_size(self) -> int:
        """Of the residual."""
        return self.widths[0]


@dataclass(frozen=True, slots=True)
class NativeOp:
    """What native code there is: an op, the primitive ones that it stands for, and the shapes that it does not take ("": none)."""

    name: str
    covers: tuple[str, ...]
    limits: str = ""


_HALVES = "half of the rows has to be a multiple of 16"
_WRITES = "head_dim has to be a multiple of 16, up to 256, and so do page_tokens"
NATIVE_OPS = (
    NativeOp("embed", ("embed",)),
    NativeOp("embed_positions", ("embed_positions",)),
    NativeOp("rms_norm", ("rms_norm",)),
    NativeOp("layer_norm", ("layer_norm",)),
    NativeOp("norm_add", ("rms_norm", "add")),
    NativeOp("linear", ("linear",)),
    NativeOp("linear_add", ("linear", "add")),
    NativeOp("linear_act", ("linear", "act")),
    NativeOp("linear_act_mul", ("linear", "act_mul"), _HALVES),
    NativeOp("norm_linear", ("rms_norm", "linear")),
    NativeOp("layer_norm_linear", ("layer_norm", "linear")),
    NativeOp("norm_linear_act", ("rms_norm", "linear", "act")),
    NativeOp("layer_norm_linear_act", ("layer_norm", "linear", "act")),
    NativeOp("norm_linear_act_mul", ("rms_norm", "linear", "act_mul"), _HALVES),
    NativeOp("add", ("add",)),
    NativeOp("act", ("act",)),
    NativeOp("act_mul", ("act_mul",)),
    NativeOp("norm_rope_kv_write", ("head_norm", "rope", "kv_write"), _WRITES),
    NativeOp("norm_kv_write", ("head_norm", "kv_write"), _WRITES),
    NativeOp("rope_kv_write", ("rope", "kv_write"), _WRITES),
    NativeOp("kv_write", ("kv_write",), _WRITES),
    NativeOp("paged_attention", ("paged_attention",), _WRITES),
    NativeOp("experts", ("experts",), "the inner width of an expert has to be a multiple of 16"),
    NativeOp("softcap", ("softcap",)),
)
INDEX_OF = {op.covers: idx for idx, op in enumerate(NATIVE_OPS)}
