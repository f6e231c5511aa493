"""The families that there are, by the architecture that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drivers.errors import ModelCorrupt
from drivers.models.config import DecoderConfig
from drivers.models.families.family import Family, Reading
from drivers.models.families.gemma import GEMMA, GEMMA2, GEMMA3
from drivers.models.families.gpt2 import GPT2
from drivers.models.families.llama import LLAMA, MISTRAL, PHI3, QWEN2, QWEN3, SMOLLM3
from drivers.models.families.moe import MIXTRAL, QWEN3_MOE
from drivers.models.families.olmo2 import OLMO2
from drivers.models.families.sheet import Sheet
from drivers.models.fields import Fields
from drivers.models.shards import StoredTensor

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "SmolLM3ForCausalLM": SMOLLM3,
    "Phi3ForCausalLM": PHI3,
    "GemmaForCausalLM": GEMMA,
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA3,
    "Olmo2ForCausalLM": OLMO2,
    "GPT2LMHeadModel": GPT2,
    "MixtralForCausalLM": MIXTRAL,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}


def read_config(directory: Path, max_positions: int) -> DecoderConfig:
    """Read a model directory's config; `max_positions` is the declared maximum, 0 for the config's own.

    Raises: ModelUnsupported, naming the field and what is supported; ModelCorrupt.
    """
    if not directory.is_dir():
        raise ModelCorrupt(f"{directory} is not a directory.")
    if not (directory / "config.json").is_file():
        raise ModelCorrupt(f"{directory} has no config.json; a Hugging Face model directory is needed.")
    fields = Fields.read(directory / "config.json")
    family = _family(fields)
    _refuse_unsupported(fields)
    return family.read(Reading(fields, family, directory, max_positions))


def write_down(config: DecoderConfig) -> tuple[Sheet, ...]:
    """Every segment of a model: the embedding, each layer, and the end."""
    family = FAMILIES[config.architecture]
    first, last = Sheet(config, family.prefix), Sheet(config, family.prefix)
    family.first(first)
    layers = [Sheet(config, f"{family.prefix}{family.layers}.{idx}.", idx) for idx in range(config.num_layers)]
    for layer in layers:
        family.layer(layer)
    family.last(last)
    return first, *layers, last


def under_prefix(config: DecoderConfig, stored: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """The tensors of a checkpoint by the names of a whole model; a checkpoint of its body alone leaves the first word out."""
    prefix = FAMILIES[config.architecture].prefix
    if any(name.startswith(prefix) for name in stored):
        return stored
    return {name if name.startswith("lm_head.") else prefix + name: tensor for name, tensor in stored.items()}


def _family(fields: Fields) -> Family:
    supported = ", ".join(FAMILIES)
    if not fields.has("architectures"):
        raise fields.unsupported("architectures", f"one of {supported}")
    names = fields.texts("architectures")
    if len(names) != 1 or names[0] not in FAMILIES:
        raise fields.unsupported("architectures", f"one of {supported}")
    family = FAMILIES[names[0]]
    if fields.text("model_type", family.model_type) != family.model_type:
        raise fields.unsupported("model_type", f"{family.model_type!r} with {names[0]}")
    return family


def _refuse_unsupported(fields: Fields) -> None:
    if fields.has("auto_map"):
        raise fields.unsupported("auto_map", "none: code that comes with a model is never run")
    if fields.flag("is_encoder_decoder", False):
        raise fields.unsupported("is_encoder_decoder", "false")
