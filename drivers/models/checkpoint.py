"""A model directory as it is: the config that it says, and its tensors under the names that the model knows them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drivers.contract import InspectSpec
from drivers.gguf import find_gguf
from drivers.models.config import DecoderConfig
from drivers.models.families.table import read_config, under_prefix
from drivers.models.fields import Fields
from drivers.models.gguf import open_gguf
from drivers.models.quant.formats import open_tensors
from drivers.models.shards import find_tensors
from drivers.models.stored import Stored


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was read."""

    config: DecoderConfig
    tensors: Mapping[str, Stored]
    quant: str = ""  # how it is quantized, in a few words; "": it is not


def read_base_config(path: Path, max_positions: int) -> DecoderConfig:
    """The config of a model, whatever form it has. Raises: ModelUnsupported, ModelCorrupt."""
    return read_checkpoint(InspectSpec(str(path), max_positions)).config if find_gguf(path) else read_config(path, max_positions)


def read_checkpoint(source: InspectSpec) -> Checkpoint:
    """Read config and headers of a model. Raises: ModelUnsupported, ModelCorrupt."""
    directory = Path(source.path)
    file = find_gguf(directory)
    if file is not None:
        return Checkpoint(*open_gguf(file, source.max_positions))
    config = read_config(directory, source.max_positions)
    tensors = under_prefix(config, find_tensors(directory))
    return Checkpoint(config, *open_tensors(Fields.read(directory / "config.json"), tensors))
