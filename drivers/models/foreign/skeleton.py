"""A model of `transformers` without its weights, and where in it each tensor belongs.

    model.embed_tokens ...            | first segment: what stands before the layers
    model.layers.0.self_attn.q_proj   | segment "layer.0"
    model.norm, lm_head               | last segment: what stands behind them

Code that comes with a checkpoint is never run: only classes that the installed `transformers` has itself are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.foreign.attention import NAME

# What the words of a stranger may make the code of `transformers` raise.
STUMBLES = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, OSError, AssertionError)
MAX_LAYERS = 1 << 12


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of a module, wherever it is used: one of several places where weights are tied."""

    name: str  # as it is stored
    shape: tuple[int, ...]
    places: tuple[tuple[nn.Module, str], ...]

    def fill(self, values: Tensor) -> None:
        """Have the module compute with these values."""
        for owner, leaf in self.places:
            if leaf in owner._parameters:
                owner._parameters[leaf] = nn.Parameter(values, requires_grad=False)
            else:
                owner._buffers[leaf] = values


class _WithoutWeights(TorchFunctionMode):
    """Makes no tensor for what is to be filled later; what a module computes when it is made (rotary frequencies) it does compute."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Send `torch.empty` to the device that has no memory."""
        return func(*args, **{**(kwargs or {}), "device": "meta"}) if func is torch.empty else func(*args, **(kwargs or {}))


def read_theirs(directory: Path) -> PretrainedConfig:
    """The config as `transformers` reads it. Raises: ModelCorrupt, ModelUnsupported."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (*STUMBLES, StrictDataclassError) as error:
        raise ModelCorrupt(f"config.json: transformers cannot read it: {_said(error)}") from error
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int) or not 0 < layers <= MAX_LAYERS:
        raise ModelUnsupported(f"config.json: num_hidden_layers is {layers!r}; supported are 1 to {MAX_LAYERS}.")
    return config


def make_model(config: PretrainedConfig, is_hollow: bool = False) -> PreTrainedModel:
    """The model without weights; a hollow one has no memory at all, and can only be walked through. Raises: ModelUnsupported."""
    config._experts_implementation = "batched_mm" if is_hollow else "eager"  # the other one looks at values, of which there are none
    make: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta") if is_hollow else _WithoutWeights():
            model = make(config, attn_implementation=NAME, trust_remote_code=False)
        model.tie_weights()
    except KeyError as error:
        if NAME not in error.args:
            raise ModelUnsupported(f"transformers cannot make this model: {_said(error)}") from error
        what = f"The attention of {config.model_type} is code of its own in transformers"
        raise ModelUnsupported(f"{what}; supported are models that take attention from outside.") from error
    except STUMBLES as error:
        raise ModelUnsupported(f"transformers cannot make this model: {_said(error)}") from error
    model.train(False)
    return model


def slots_of(model: PreTrainedModel, layers: str) -> tuple[tuple[Slot, ...], ...]:
    """Everything stored that a model needs, by segment; `layers` is the name of the list of its layers. Raises: ModelUnsupported."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules():
        stored = {name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set}
        for leaf, tensor in (*module._parameters.items(), *stored.items()):
            if tensor is not None and tensor.is_floating_point():
                places.setdefault(id(tensor), []).append((module, leaf))
                found.setdefault(id(tensor), (f"{prefix}.{leaf}" if prefix else leaf, tensor))
    slots = [Slot(name, tuple(tensor.shape), tuple(places[key])) for key, (name, tensor) in found.items()]
    for slot in slots:
        if not slot.shape:
            raise ModelUnsupported(f"{type(model).__name__} has {slot.name}, a number by itself; supported are vectors and matrices.")
    return _by_segment(slots, layers, len(_list_of(model, layers)))


def list_name(model: PreTrainedModel, attention: Mapping[int, nn.Module]) -> str:
    """The name of the list of layers, given the attention of each. Raises: ModelUnsupported."""
    names = {id(module): name for name, module in model.named_modules()}
    found: set[str] = {names[id(module)].partition(f".{idx}.")[0] for idx, module in attention.items()}
    if len(found) != 1 or len(_list_of(model, name := found.pop())) != len(attention):
        raise ModelUnsupported(f"The layers of {type(model).__name__} do not stand in one list.")
    return name


def _list_of(model: PreTrainedModel, name: str) -> nn.ModuleList:
    layers = model.get_submodule(name)
    if not isinstance(layers, nn.ModuleList):
        raise ModelUnsupported(f"The layers of {type(model).__name__} do not stand in a list.")
    return layers


def _by_segment(slots: Sequence[Slot], layers: str, num_layers: int) -> tuple[tuple[Slot, ...], ...]:
    """What stands before the layers, each layer, and the rest. No segment is empty."""
    first: list[Slot] = []
    inside: list[list[Slot]] = [[] for _ in range(num_layers)]
    last: list[Slot] = []
    for slot in slots:
        if slot.name.startswith(f"{layers}."):
            inside[int(slot.name.removeprefix(f"{layers}.").partition(".")[0])].append(slot)
        else:
            (last if any(inside) else first).append(slot)
    if not last:
        last.append(first.pop())
    if not first or not all(inside):
        raise ModelUnsupported("A layer without weights, or a model without an embedding, has no place in the arena.")
    return tuple(map(tuple, (first, *inside, last)))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
