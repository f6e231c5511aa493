"""One walk through a model that has no weights: how each of its layers attends, and whether that is all that it remembers.

Nothing is computed; the shapes say it. What our attention would not do as the model means it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from drivers.errors import ModelUnsupported
from drivers.models.foreign.attention import attending
from drivers.models.foreign.skeleton import STUMBLES

NUM_TOKENS = 3
# What modules say to any attention, and what is of no account for tokens one behind the other in pages.
UNDERSTOOD = frozenset(["scaling", "softcap", "sliding_window"])
HARMLESS = frozenset(
    ["dropout", "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "is_causal"]
)


@dataclass(frozen=True, slots=True)
class Seen:
    """How one layer attends."""

    module: nn.Module
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    softcap: float
    window: int | None


@dataclass(slots=True)
class Probe:
    """The layers of a model, as they come."""

    name: str
    layers: dict[int, Seen] = field(default_factory=dict)

    def attend(self, module: nn.Module, heads: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, said: Mapping[str, object]) -> Tensor:
        """Take down what a layer asks for. Raises: ModelUnsupported."""
        query, key, value = heads
        layer = getattr(module, "layer_idx", None)
        if not isinstance(layer, int) or layer in self.layers:
            raise ModelUnsupported(f"{self.name} attends more than once in a layer, or does not count its layers.")
        unknown = sorted(name for name, value in said.items() if name not in UNDERSTOOD | HARMLESS and value is not None)
        if unknown or mask is not None:
            what = unknown[0] if unknown else "a mask of its own"
            raise ModelUnsupported(f"{self.name} attends with {what}, which paged attention has not.")
        if getattr(module, "is_causal", True) is False or said.get("is_causal") is False:
            raise ModelUnsupported(f"{self.name} attends to tokens that come later; supported are causal decoders.")
        if key.shape != value.shape or query.shape[-1] != key.shape[-1] or query.shape[1] % key.shape[1]:
            shapes = ", ".join(str(tuple(each.shape[1:])) for each in heads)
            raise ModelUnsupported(f"{self.name} has queries, keys and values of {shapes}; keys and values have to be alike.")
        window = said.get("sliding_window")
        self.layers[layer] = Seen(
            module=module,
            num_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            head_dim=query.shape[-1],
            scale=_number(said.get("scaling"), query.shape[-1] ** -0.5),
            softcap=_number(said.get("softcap"), 0.0),
            window=window if isinstance(window, int) and not isinstance(window, bool) and window > 0 else None,
        )
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])


def probe(model: PreTrainedModel, config: PretrainedConfig) -> dict[int, Seen]:
    """How each layer of a hollow model attends, by number. Raises: ModelUnsupported."""
    name = type(model).__name__
    if getattr(model, "_is_stateful", False):
        raise ModelUnsupported(f"{name} remembers more than keys and values; supported are models that attend in every layer.")
    found = Probe(name)
    tokens = torch.zeros(1, NUM_TOKENS, dtype=torch.int64, device="meta")
    positions = torch.arange(NUM_TOKENS, device="meta").unsqueeze(0)
    try:
        with torch.inference_mode(), attending(found.attend):
            model.base_model(input_ids=tokens, position_ids=positions, use_cache=False)
    except STUMBLES as error:
        raise ModelUnsupported(
            f"{name} cannot be run with an attention that is not its own ({type(error).__name__}: {' '.join(str(error).split())[:200]})."
        ) from error
    if sorted(found.layers) != list(range(config.num_hidden_layers)):
        raise ModelUnsupported(
            f"{name} attends in {len(found.layers)} of {config.num_hidden_layers} layers; supported are models that attend in every layer."
        )
    _check_alike(found)
    _check_windows(found, config)
    return found.layers


def _check_alike(found: Probe) -> None:
    shapes = {(seen.num_heads, seen.num_kv_heads, seen.head_dim) for seen in found.layers.values()}
    if len(shapes) != 1:
        raise ModelUnsupported(f"The layers of {found.name} have heads of {len(shapes)} kinds; supported is one.")


def _check_windows(found: Probe, config: PretrainedConfig) -> None:
    """A window that only a mask would say is not seen; it is held against what the config says of each layer."""
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return
    if set(kinds) - {"full_attention", "sliding_attention"}:
        raise ModelUnsupported(f"config.json: layer_types is {kinds!r}; supported are full_attention and sliding_attention.")
    for layer, kind in enumerate(kinds):
        if (found.layers[layer].window is not None) != (kind == "sliding_attention"):
            raise ModelUnsupported(f"{found.name} does not tell its attention the window of layer {layer}, which is {kind}.")


def _number(value: object, default: float) -> float:
    if value is None:
        return default
    if not isinstance(value, int | float):
        raise ModelUnsupported(f"Attention is scaled by a {type(value).__name__}; supported is one number for all tokens.")
    return float(value)
