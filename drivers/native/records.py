"""The structures of `cpu/program.h` and `cpu/sampling.h`, field for field. Where the two disagree in size, no engine is opened."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from enum import IntEnum

from drivers.models.storage import Kind
from drivers.native import lora
from drivers.ops.calls import Activation

MAX_PROFILED = 32  # engine.h
NONE = -1


class Code(IntEnum):
    """What a record does."""

    EMBED = 0
    EMBED_POSITIONS = 1
    NORM = 2
    LINEAR = 3
    ADD = 4
    ACT = 5
    ACT_MUL = 6
    ROPE_KV_WRITE = 7
    ATTENTION = 8
    EXPERTS = 9
    SOFTCAP = 10


class Norm(IntEnum):
    """Of a linear's inputs, or of a norm itself."""

    NONE = 0
    RMS = 1
    LAYER = 2


class Epilogue(IntEnum):
    """What becomes of outputs."""

    NONE = 0
    ADD = 1
    ACT = 2
    ACT_MUL = 3


KINDS = {Kind.FLOAT32: 0, Kind.BFLOAT16: 1, Kind.INT8: 2, Kind.INT4: 3, Kind.FLOAT8: 4}
ACTIVATIONS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2}


class VectorRecord(Structure):
    """A vector of float32 in a segment."""

    _fields_ = (("segment", c_int32), ("size", c_int32), ("offset", c_int64))


class WeightRecord(Structure):
    """One matrix, or several of one shape, in panels in a segment."""

    _fields_ = (
        *((name, c_int32) for name in ("segment", "kind", "rows", "columns", "group")),
        *((name, c_int64) for name in ("values", "scales", "offsets", "values_bytes", "scales_bytes", "offsets_bytes")),
    )


class OpRecord(Structure):
    """One call."""

    _fields_ = (
        *((name, c_int32) for name in ("code", "norm", "epilogue", "function", "input", "output", "layer", "place", "group")),
        *((name, c_int32) for name in ("table", "num_dims", "is_over_all_heads")),
        *((name, c_int32) for name in ("has_unit_offset", "has_head_unit_offset", "num_experts", "top_k", "is_normalized", "profiled_as")),
        *((name, c_float) for name in ("eps", "head_eps", "scale", "cap")),
        ("layer_bytes", c_int64),
        *((name, VectorRecord) for name in ("norm_weight", "norm_bias", "bias", "query_norm", "key_norm")),
        *((name, WeightRecord) for name in ("weight", "down", "router")),
    )


class GroupRecord(Structure):
    """Pages of one KV group."""

    _fields_ = (("frame_bytes", c_int64), ("window", c_int32), ("reserved", c_int32))


class ShapeRecord(Structure):
    """What all calls share."""

    _fields_ = (
        *((name, c_int32) for name in ("num_heads", "kv_heads", "head_dim", "page_tokens")),
        *((name, c_int32) for name in ("vocab_size", "max_positions", "num_groups", "num_tables", "kv_kind", "reserved")),
        ("granule_bytes", c_int64),
    )


class StepRecord(Structure):
    """One step."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("num_rows", c_int64),
        ("tokens", c_void_p),
        ("rows", c_void_p),
        ("frames", POINTER(c_void_p)),
        ("num_lora_tokens", c_int64),
        ("num_adapters", c_int64),
        ("lora_tokens", c_void_p),
        ("lora_counts", c_void_p),
        ("lora_tables", POINTER(c_void_p)),
        ("is_lora_bf16", c_int32),
        ("reserved", c_int32),
    )


class ArenaRecord(Structure):
    """Where frames lie."""

    _fields_ = (("address", c_void_p), ("size_bytes", c_int64))


class TimesRecord(Structure):
    """What ops of one name took."""

    _fields_ = (("calls", c_int64), ("wall_ns", c_int64), ("busy_ns", c_int64))


class DrawRecord(Structure):
    """How one row draws: `cpu/sampling.h`."""

    _fields_ = (
        *(("top_p", c_double), ("seed", c_uint64), ("position", c_int64)),
        *((name, c_float) for name in ("temperature", "min_p", "repetition", "presence", "frequency")),
        *((name, c_int32) for name in ("top_k", "num_logprobs", "given", "first_seen", "num_seen")),
    )


class DrawnRecord(Structure):
    """A token with its log-probability."""

    _fields_ = (("token", c_int32), ("logprob", c_float))


class RowsRecord(Structure):
    """Rows that draw, and where it goes what they have drawn."""

    _fields_ = (
        *(("logits", c_void_p), ("width", c_int32)),
        *((name, c_void_p) for name in ("draws", "seen", "drawn", "likeliest")),
        ("most_likeliest", c_int32),
    )


SIZES = [
    *(ctypes.sizeof(record) for record in (OpRecord, ShapeRecord, GroupRecord, StepRecord)),
    lora.RECORD_BYTES,
    *(ctypes.sizeof(record) for record in (TimesRecord, DrawRecord, DrawnRecord, RowsRecord)),
]


def no_op() -> OpRecord:
    """A record that names no weights yet."""
    record = OpRecord(layer=NONE, place=NONE, scale=1.0)
    for name in ("norm_weight", "norm_bias", "bias", "query_norm", "key_norm"):
        getattr(record, name).segment = NONE
    for name in ("weight", "down", "router"):
        getattr(record, name).segment = NONE
    return record
