"""The config of an architecture that has no family here, by what `transformers` makes of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import transformers
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from drivers.errors import ModelUnsupported
from drivers.models.config import DecoderConfig, Foreign, KvGroup, LayerConfig, groups_of
from drivers.models.families.reading import declared_positions, eos_token_ids
from drivers.models.fields import Fields
from drivers.models.foreign.names import sources_of
from drivers.models.foreign.probe import Seen, probe
from drivers.models.foreign.skeleton import list_name, make_model, read_theirs, slots_of
from drivers.models.parts import PartSpec
from drivers.models.shards import find_tensors
from drivers.ops.calls import Activation, AttentionSettings

COUNTED = re.compile(r"layer|expert|head|block|stage|depth")  # fields that say how many modules are made
MAX_COUNT = 1 << 12
GROWING = ("dynamic", "longrope", "su")  # rotary scalings that follow the longest text of a batch


def is_known(architecture: str) -> bool:
    """Whether `transformers` has a causal language model of this name."""
    return architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def read_foreign(fields: Fields, directory: Path, declared: int) -> DecoderConfig:
    """Read the config and walk through the model once, without weights. Raises: ModelUnsupported, ModelCorrupt."""
    for name in ("quantization_config", "compression_config"):
        if fields.has(name):
            raise fields.unsupported(name, f"none: {fields.texts('architectures')[0]} is computed by transformers, from floats")
    _check_counts(fields)
    theirs = read_theirs(directory)
    _check_rope(theirs)
    model = make_model(theirs, is_hollow=True)
    if type(model).__name__ != fields.texts("architectures")[0]:
        raise fields.unsupported("architectures", f"{type(model).__name__} with model_type {theirs.model_type!r}")
    seen = probe(model, theirs)
    name = list_name(model, {layer: each.module for layer, each in seen.items()})
    segments = slots_of(model, name)
    sources = sources_of(model, itertools.chain(*segments), find_tensors(directory))
    prefixes = ["", *(f"{name}.{layer}." for layer in range(len(seen))), ""]
    layers = tuple(LayerConfig(seen[layer].window, None) for layer in range(len(seen)))
    groups = groups_of(layers)
    foreign = Foreign(
        version=transformers.__version__,
        layers=name,
        segments=tuple(
            tuple(PartSpec(slot.name.removeprefix(prefix), slot.shape, sources[slot.name]) for slot in slots)
            for slots, prefix in zip(segments, prefixes, strict=True)
        ),
        attention=tuple(_settings(layer, seen[layer], groups) for layer in range(len(seen))),
    )
    return _config(fields, directory, (theirs, declared), (seen[0], layers, foreign))


def _config(
    fields: Fields, directory: Path, said: tuple[PretrainedConfig, int], found: tuple[Seen, tuple[LayerConfig, ...], Foreign]
) -> DecoderConfig:
    theirs, declared = said
    seen, layers, foreign = found
    positions, vocab = getattr(theirs, "max_position_embeddings", None), theirs.get_text_config().vocab_size
    if not isinstance(positions, int) or positions < 1:
        raise ModelUnsupported(f"config.json: max_position_embeddings is {positions!r}; a whole number of at least 1 is needed.")
    return DecoderConfig(
        architecture=fields.texts("architectures")[0],
        vocab_size=vocab,
        hidden_size=theirs.hidden_size,
        intermediate_size=0,
        num_layers=len(layers),
        num_heads=seen.num_heads,
        num_kv_heads=seen.num_kv_heads,
        head_dim=seen.head_dim,
        norm_eps=0.0,
        max_positions=declared_positions(declared, positions),
        rotary=(),
        layers=layers,
        groups=groups_of(layers),
        attention_scale=seen.scale,
        activation=Activation.SILU,
        has_qkv_bias=False,
        has_output_bias=False,
        has_mlp_bias=False,
        has_qk_norm=False,
        is_tied=bool(theirs.tie_word_embeddings),
        bos_token_id=(*fields.token_ids("bos_token_id"), None)[0],
        eos_token_ids=eos_token_ids(directory, fields),
        foreign=foreign,
    )


def _settings(layer: int, seen: Seen, groups: Sequence[KvGroup]) -> AttentionSettings:
    group = next(idx for idx, group in enumerate(groups) if layer in group.layers)
    return AttentionSettings(layer, group, seen.scale, seen.softcap)


def _check_counts(fields: Fields) -> None:
    """A config cannot have so many modules made that making them does not end. Raises: ModelUnsupported."""
    for name, value in fields.values.items():
        if isinstance(value, int) and value > MAX_COUNT and COUNTED.search(name):
            raise fields.unsupported(name, f"at most {MAX_COUNT}")


def _check_rope(config: PretrainedConfig) -> None:
    for rope in _ropes(getattr(config, "rope_parameters", None)):
        if rope.get("rope_type") in GROWING:
            raise ModelUnsupported(
                f"config.json: rope_type is {rope['rope_type']!r}, which transformers computes anew as texts grow; "
                "what one text gets would depend on the others of its batch."
            )


def _ropes(value: object) -> Iterator[Mapping[str, object]]:
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _ropes(inner)
