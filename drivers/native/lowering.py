"""From calls of ops to the program that the native engine runs: records of numbers, checked once, so that a step need not be.

    lower(description, segments, shape) -> Program          raises NotCovered, which says what has no native code

It takes primitive calls and fused ones alike (see `NATIVE_OPS` for what there is). A fused call reads what the first of its ops reads and
writes what the last one writes; its parts stand one behind the other, vectors and matrices in the order of the ops:

    norm_linear            x -> y                          norm [, norm bias], matrix [, bias]              NormSettings
    norm_linear_act_mul    x -> y                          the same                                         NormSettings, ActivationSettings
    linear_act_mul         x -> y                          matrix [, bias]                                  ActivationSettings
    linear_act             x -> y                          matrix [, bias]                                  ActivationSettings
    linear_add             x, residual -> residual         matrix [, bias]
    norm_add               x, residual -> residual         norm [, norm bias]                               NormSettings
    rope_kv_write          qkv, positions -> qkv           [query_norm, key_norm]      [HeadNormSettings,] RopeSettings, AttentionSettings

A weight is named by segment and byte offset in it; where the segment is, the engine is told with every pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drivers.models.storage import Kind, Storage
from drivers.ops.calls import Description


class NotCovered(Exception):
    """There is no native code for an op or a shape of this model; the message says which."""


@dataclass(frozen=True, slots=True)
class NativePart:
    """One part of a segment. Vectors are float32, matrices in panels: values, scales and offsets each from a multiple of 64 bytes on."""

    offset_bytes: int  # from the start of the segment
    shape: tuple[int, ...]
    storage: Storage | None = None  # None: a vector


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
    kv_kind: Kind  # FLOAT32, BFLOAT16 or INT8
    groups: tuple[KvGroupShape, ...]
    layer_bytes: tuple[int, ...]  # of each layer: where its part begins in a frame of its group
    segment_bytes: tuple[int, ...]
    rotary: tuple[RotaryTable, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """A lowered model."""

    ops: bytes  # records of engine.h, `Op`
    num_ops: int
    layers: tuple[int, ...]  # index of the first op of each layer, and of the first behind the layers
    shape: ModelShape


@dataclass(frozen=True, slots=True)
class NativeOp:
    """What native code there is for an op."""

    name: str
    covers: tuple[str, ...]  # the primitive ops that it stands for
    limits: str  # the shapes that it does not take; "": none


NATIVE_OPS: tuple[NativeOp, ...] = ()


def lower(description: Description, segments: Sequence[Mapping[str, NativePart]], shape: ModelShape) -> Program:
    """Make the program of a model whose segments are the first, one for each layer, and the last.

    A part that a list's own segment lacks is looked for in the first one (a tied head). Raises: NotCovered.
    """
    raise NotImplementedError
