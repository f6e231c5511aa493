"""The families that there are, by the architecture that a config names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
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
from drivers.models.parts import PartSpec
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
    _refuse_unsupported(fields)
    name = _architecture(fields)
    if name not in FAMILIES:
        return _read_foreign(fields, directory, max_positions)
    family = FAMILIES[name]
    if fields.text("model_type", family.model_type) != family.model_type:
        raise fields.unsupported("model_type", f"{family.model_type!r} with {name}")
    return family.read(Reading(fields, family, directory, max_positions))


def write_down(config: DecoderConfig) -> tuple[Sheet, ...]:
    """Every segment of a model: the embedding, each layer, and the end."""
    if config.foreign is not None:
        return tuple(_filled(Sheet(config, ""), parts) for parts in config.foreign.segments)
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
    if config.foreign is not None:
        return stored
    prefix = FAMILIES[config.architecture].prefix
    if any(name.startswith(prefix) for name in stored):
        return stored
    return {name if name.startswith("lm_head.") else prefix + name: tensor for name, tensor in stored.items()}


def _architecture(fields: Fields) -> str:
    """The one architecture that a config names. Raises: ModelUnsupported, ModelCorrupt."""
    names = fields.texts("architectures") if fields.has("architectures") else ()
    if len(names) != 1:
        raise fields.unsupported("architectures", f"one of {', '.join(FAMILIES)}")
    return names[0]


def _read_foreign(fields: Fields, directory: Path, max_positions: int) -> DecoderConfig:
    """An architecture that is not ours, if `transformers` is there and knows it. Raises: ModelUnsupported, ModelCorrupt."""
    if find_spec("transformers") is None:
        raise fields.unsupported("architectures", f"one of {', '.join(FAMILIES)}; many others are with kerneld[hf] installed")
    from drivers.models.foreign.reading import is_known, read_foreign  # heavy, and may be missing

    if not is_known(_architecture(fields)):
        raise fields.unsupported("architectures", f"one of {', '.join(FAMILIES)}, or a causal language model that transformers knows")
    return read_foreign(fields, directory, max_positions)


def _filled(sheet: Sheet, parts: Sequence[PartSpec]) -> Sheet:
    """A segment whose calls are not ours."""
    sheet.parts.extend(parts)
    return sheet


def _check_auto_map(fields: Fields) -> None:
    """Code that comes with a model is never run; it need not be where it is the code of the architecture of that name (Phi-3 has it)."""
    inner = fields.inner("auto_map")
    models = {key: value for key, value in inner.values.items() if key.startswith("AutoModel")} if inner is not None else {}
    if any(not isinstance(value, str) or value.rpartition(".")[2] != _architecture(fields) for value in models.values()):
        raise fields.unsupported("auto_map", "none: code that comes with a model is never run")


def _refuse_unsupported(fields: Fields) -> None:
    _check_auto_map(fields)
    if fields.flag("is_encoder_decoder", False):
        raise fields.unsupported("is_encoder_decoder", "false")
