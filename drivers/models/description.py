"""A decoder as calls of named ops, made of its config alone (the form: `drivers.ops.calls`).

Parts are those of `drivers.models.layout`: a call of the first list names parts of the segment "embedding", one of a layer's list those of
that layer, one of the last list those of "end", but for a tied head, which is the part `embedding` of the first segment.
"""

from __future__ import annotations

from collections.abc import Iterator

from drivers.models.config import DecoderConfig
from drivers.ops.calls import (
    Activation,
    ActivationSettings,
    AttentionSettings,
    Call,
    Description,
    EmbedSettings,
    HeadNormSettings,
    NormSettings,
    RopeSettings,
)


def describe(config: DecoderConfig) -> Description:
    """What the model computes, from tokens and positions to logits."""
    head = "embedding" if config.is_tied else "head"
    return Description(
        first=(Call("embed", ("tokens",), ("residual",), ("embedding",), (EmbedSettings(),)),),
        layers=tuple(tuple(_layer(config, layer)) for layer in range(config.num_layers)),
        last=(
            Call("rms_norm", ("residual",), ("x",), ("norm",), (NormSettings(config.norm_eps),)),
            Call("linear", ("x",), ("logits",), (head,)),
        ),
    )


def _layer(config: DecoderConfig, layer: int) -> Iterator[Call]:
    norm = NormSettings(config.norm_eps)
    yield Call("rms_norm", ("residual",), ("x",), ("input_norm",), (norm,))
    yield _linear("qkv", "x", "qkv", config.has_qkv_bias)
    yield from _attention(config, layer)
    yield _linear("output", "mixed", "y", config.has_output_bias)
    yield Call("add", ("y", "residual"), ("residual",))
    yield Call("rms_norm", ("residual",), ("x",), ("inner_norm",), (norm,))
    yield _linear("gate_up", "x", "gate_up", config.has_mlp_bias)
    yield Call("act_mul", ("gate_up",), ("inner",), (), (ActivationSettings(Activation.SILU),))
    yield _linear("down", "inner", "y", config.has_mlp_bias)
    yield Call("add", ("y", "residual"), ("residual",))


def _attention(config: DecoderConfig, layer: int) -> Iterator[Call]:
    group = next(idx for idx, group in enumerate(config.groups) if layer in group.layers)
    attention = AttentionSettings(layer, group, config.head_dim**-0.5)
    if config.has_qk_norm:
        yield Call("head_norm", ("qkv",), ("qkv",), ("query_norm", "key_norm"), (HeadNormSettings(config.norm_eps),))
    yield Call("rope", ("qkv", "positions"), ("qkv",), (), (RopeSettings(0, config.head_dim),))
    yield Call("kv_write", ("qkv",), (), (), (attention,))
    yield Call("paged_attention", ("qkv",), ("mixed",), (), (attention,))


def _linear(part: str, x: str, y: str, has_bias: bool) -> Call:
    parts = (f"{part}.weight", f"{part}.bias") if has_bias else (f"{part}.weight",)
    return Call("linear", (x,), (y,), parts)
