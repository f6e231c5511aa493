"""How weights lie in the arena: segments, the parts in them, and which stored tensors fill each part.

    segment "layer.3"   | input_norm | qkv.weight                    | qkv.bias | output.weight | ... | down.weight |
                                     | q rows  | k rows   | v rows   |
                                       one GEMM serves all three

Parts start at multiples of 64 bytes. Query heads are stored **group-major**: head g * num_kv_heads + j is the g-th query of KV head j,
where Hugging Face stores j * queries_per_kv + g. Attention then reads its queries and leaves its output without a copy; the rows of the
query projection and the columns of the output projection are permuted once, here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.config import DecoderConfig
from drivers.models.shards import StoredTensor

ALIGN_BYTES = 64


class Arrangement(Enum):
    """How a stored tensor is turned on its way into place."""

    PLAIN = "plain"
    QUERY_ROWS = "query rows"  # [kv_heads, queries, head_dim, ...] -> [queries, kv_heads, head_dim, ...]
    OUTPUT_COLUMNS = "output columns"  # [hidden, kv_heads, queries, head_dim] -> [hidden, queries, kv_heads, head_dim]


@dataclass(frozen=True, slots=True)
class Source:
    """A stored tensor that fills rows [row, row + shape[0]) of a part."""

    tensor: str
    shape: tuple[int, ...]
    row: int = 0
    arrangement: Arrangement = Arrangement.PLAIN


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor in the arena."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    offset_bytes: int = 0  # from the start of the segment


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the weights that moves as one."""

    name: str
    parts: tuple[Part, ...]
    size_bytes: int


def decoder_segments(config: DecoderConfig, item_bytes: int) -> tuple[Segment, ...]:
    """The segments of a decoder: the embedding, each layer, and the end (final norm, and the head where it is not tied)."""
    table = (config.vocab_size, config.hidden_size)
    embedding = _segment("embedding", [_single("embedding", "model.embed_tokens.weight", table)], item_bytes)
    layers = [_segment(f"layer.{layer}", list(_layer_parts(config, layer)), item_bytes) for layer in range(config.num_layers)]
    end = [_single("norm", "model.norm.weight", (config.hidden_size,))]
    if not config.is_tied:
        end.append(_single("head", "lm_head.weight", table))
    return (embedding, *layers, _segment("end", end, item_bytes))


def check_tensors(config: DecoderConfig, segments: tuple[Segment, ...], stored: Mapping[str, StoredTensor]) -> None:
    """Every needed tensor is there in its shape, and nothing else is. Raises: ModelCorrupt, ModelUnsupported."""
    sources = {source.tensor: source for segment in segments for part in segment.parts for source in part.sources}
    for name, source in sources.items():
        if name not in stored:
            raise ModelCorrupt(f"The weights lack {name}.")
        if stored[name].shape != source.shape:
            raise ModelCorrupt(f"{stored[name].file.name}: {name} has shape {stored[name].shape}; config.json asks for {source.shape}.")
    for name in stored:
        is_harmless = name.endswith(".rotary_emb.inv_freq") or (config.is_tied and name == "lm_head.weight")
        if name not in sources and not is_harmless:
            raise ModelUnsupported(f"The weights hold {name}, which {config.architecture} with this config does not use.")


def _layer_parts(config: DecoderConfig, layer: int) -> Iterator[Part]:
    prefix = f"model.layers.{layer}."
    hidden, inner = config.hidden_size, config.intermediate_size
    width = config.num_heads * config.head_dim
    yield _single("input_norm", prefix + "input_layernorm.weight", (hidden,))
    yield from _qkv_parts(config, prefix + "self_attn.")
    if config.has_qk_norm:
        yield _single("query_norm", prefix + "self_attn.q_norm.weight", (config.head_dim,))
        yield _single("key_norm", prefix + "self_attn.k_norm.weight", (config.head_dim,))
    output = Source(prefix + "self_attn.o_proj.weight", (hidden, width), arrangement=Arrangement.OUTPUT_COLUMNS)
    yield Part("output.weight", (hidden, width), (output,))
    if config.has_output_bias:
        yield _single("output.bias", prefix + "self_attn.o_proj.bias", (hidden,))
    yield _single("inner_norm", prefix + "post_attention_layernorm.weight", (hidden,))
    for kind, columns in (("weight", (hidden,)), ("bias", ())):
        if kind == "weight" or config.has_mlp_bias:
            names = [(prefix + f"mlp.{name}_proj.{kind}", inner, Arrangement.PLAIN) for name in ("gate", "up")]
            yield _stacked(f"gate_up.{kind}", names, columns)
    yield _single("down.weight", prefix + "mlp.down_proj.weight", (hidden, inner))
    if config.has_mlp_bias:
        yield _single("down.bias", prefix + "mlp.down_proj.bias", (hidden,))


def _qkv_parts(config: DecoderConfig, prefix: str) -> Iterator[Part]:
    width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for kind, columns in (("weight", (config.hidden_size,)), ("bias", ())):
        if kind == "weight" or config.has_qkv_bias:
            names = [
                (prefix + f"q_proj.{kind}", width, Arrangement.QUERY_ROWS),
                (prefix + f"k_proj.{kind}", kv_width, Arrangement.PLAIN),
                (prefix + f"v_proj.{kind}", kv_width, Arrangement.PLAIN),
            ]
            yield _stacked(f"qkv.{kind}", names, columns)


def _single(name: str, tensor: str, shape: tuple[int, ...]) -> Part:
    return Part(name, shape, (Source(tensor, shape),))


def _stacked(name: str, tensors: list[tuple[str, int, Arrangement]], columns: tuple[int, ...]) -> Part:
    """Tensors of the same columns above one another; each is (stored name, rows, arrangement)."""
    sources: list[Source] = []
    row = 0
    for tensor, rows, arrangement in tensors:
        sources.append(Source(tensor, (rows, *columns), row, arrangement))
        row += rows
    return Part(name, (row, *columns), tuple(sources))


def _segment(name: str, parts: list[Part], item_bytes: int) -> Segment:
    placed: list[Part] = []
    offset = 0
    for part in parts:
        placed.append(Part(part.name, part.shape, part.sources, offset))
        offset += _aligned(math.prod(part.shape) * item_bytes)
    return Segment(name, tuple(placed), offset)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES
