"""Which stored tensors fill which tensor of a module: `transformers` renames some, and stacks what checkpoints hold expert by expert."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming, rename_source_key

from drivers.models.foreign.skeleton import Slot
from drivers.models.parts import Source

NUMBER = re.compile(r"\.(\d+)\.")


def sources_of(model: PreTrainedModel, slots: Iterable[Slot], stored: Iterable[str]) -> Mapping[str, tuple[Source, ...]]:
    """What fills each slot, by its name. What nothing fills has a source under its own name, which will be found missing."""
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    ranks = {pattern: rank for each in converters if _stacks(each) for rank, pattern in enumerate(each.source_patterns)}
    plain: dict[str, str] = {}
    stacked: dict[str, list[tuple[int, int, str]]] = {}  # expert, place within it, stored name
    for name in stored:
        key, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, model.state_dict())
        if pattern is None:
            plain[key] = name
        elif pattern in ranks:
            stacked.setdefault(key, []).append((_expert(name), ranks[pattern], name))
    return {slot.name: _sources(slot, plain.get(slot.name), stacked.get(slot.name, [])) for slot in slots}


def _sources(slot: Slot, plain: str | None, stacked: list[tuple[int, int, str]]) -> tuple[Source, ...]:
    if plain is None and stacked and len(slot.shape) == 3:
        num_experts, rows, columns = slot.shape
        each = rows * num_experts // len(stacked)
        return tuple(Source(name, (each, columns), idx * each) for idx, (_, _, name) in enumerate(sorted(stacked)))
    return (Source(plain or slot.name, slot.shape),)


def _stacks(converter: WeightConverter) -> bool:
    """Whether it puts what experts have of their own one behind the other, as parts with three dimensions lie."""
    merges, *rest = converter.operations
    is_merge = isinstance(merges, MergeModulelist) and merges.dim == 0
    return is_merge and (not rest or (len(rest) == 1 and isinstance(rest[0], Concatenate) and rest[0].dim == 1))


def _expert(name: str) -> int:
    """The last number in a name."""
    return int(NUMBER.findall(name)[-1])
