"""A LoRA adapter on disk in the PEFT form: `adapter_config.json` and `adapter_model.safetensors`, read as the words of a stranger.

    W' = W + scale * B A          scale = alpha / r, or alpha / sqrt(r) with use_rslora; one r and alpha for each adapted linear

Everything a config can say is either understood, known not to change inference, or refused by name. Which linears are adapted is what the
tensors say; `target_modules` is held against them. Nothing is ever unpickled, and no regular expression of a stranger is ever run: where
`target_modules` is one, the tensors are taken as what it selects, and a pattern of ranks or alphas that is more than a name is refused.

Source: https://huggingface.co/docs/peft/developer_guides/checkpoint (format); peft, tuners/lora/config.py (fields).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.fields import Fields
from drivers.models.shards import PICKLES, StoredTensor, read_header
from drivers.models.stored import check_floats

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_RANK = 1 << 12
KEY = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])\.weight")
PLAIN_PATTERN = re.compile(r"\^?[A-Za-z0-9_.]+\$?")  # a name, perhaps anchored; a dot in it means a dot

UNDERSTOOD = frozenset(
    [
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "target_modules",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "init_lora_weights",
    ]
)
# Of training, of how the linears were chosen, or notes: the stored tensors are what they come to.
HARMLESS = frozenset(
    [
        "fan_in_fan_out",  # how the base stores its weights; A and B lie the same either way
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "layers_to_transform",
        "layers_pattern",
        "exclude_modules",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "peft_version",
        "runtime_config",
        "qalora_group_size",
        "ensure_weight_tying",
    ]
)
OTHER_BASE = "true, false, 'gaussian', 'orthogonal' or 'eva': the others change the base model's own weights"
KEPT_BASE = ("gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """The change of one linear as it is stored."""

    down: StoredTensor  # A [rank, in]
    up: StoredTensor  # B [out, rank]
    scale: float

    @property
    def rank(self) -> int:
        """Columns between the two."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What `adapter_config.json` says."""

    rank: int
    alpha: float
    has_root_scale: bool  # use_rslora
    targets: tuple[str, ...] | None  # names of modules, or the ends of names; None: what the tensors say
    ranks: Mapping[str, float] = field(default_factory=dict)  # by pattern
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank that a module has to have."""
        return int(_by_pattern(self.ranks, module, self.rank))

    def scale_of(self, module: str, rank: int) -> float:
        """What the product of its two matrices is multiplied by."""
        alpha = _by_pattern(self.alphas, module, self.alpha)
        return alpha / math.sqrt(rank) if self.has_root_scale else alpha / rank


def read_peft_config(directory: Path) -> PeftConfig:
    """Read an adapter's config. Raises: ModelUnsupported, naming the field and what is supported; ModelCorrupt."""
    if not directory.is_dir():
        raise ModelCorrupt(f"{directory} is not a directory.")
    if not (directory / CONFIG_FILE).is_file():
        raise ModelCorrupt(f"{directory} has no {CONFIG_FILE}; an adapter is a directory in the PEFT form.")
    fields = Fields.read(directory / CONFIG_FILE)
    _refuse_unsupported(fields)
    return PeftConfig(
        rank=fields.integer("r", 8, high=MAX_RANK),
        alpha=fields.number("lora_alpha", 8.0),
        has_root_scale=fields.flag("use_rslora", False),
        targets=_targets(fields),
        ranks=_patterns(fields, "rank_pattern"),
        alphas=_patterns(fields, "alpha_pattern"),
    )


def find_changes(directory: Path, config: PeftConfig) -> dict[str, LoraTensors]:
    """Every adapted linear by its name in the base model (`model.layers.0.self_attn.q_proj`). Raises: ModelUnsupported, ModelCorrupt."""
    sides: dict[str, dict[str, StoredTensor]] = {}
    for tensor in _stored(directory):
        match = KEY.fullmatch(tensor.name)
        if match is None:
            raise _unknown_tensor(tensor.name)
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise ModelCorrupt(f"{WEIGHTS_FILE} holds no tensors.")
    _check_targets(config, sides)
    return {module: _change(module, found, config) for module, found in sides.items()}


def _stored(directory: Path) -> tuple[StoredTensor, ...]:
    path = directory / WEIGHTS_FILE
    if path.is_file():
        tensors = read_header(path)
        check_floats(tensors)
        return tensors
    if any(next(directory.glob(pattern), None) for pattern in PICKLES):
        raise ModelUnsupported(
            "The adapter's weights are pickled, and those can run code when they are read; "
            "convert them to safetensors (save_pretrained does) and try again."
        )
    raise ModelCorrupt(f"{directory} has no {WEIGHTS_FILE}.")


def _change(module: str, sides: Mapping[str, StoredTensor], config: PeftConfig) -> LoraTensors:
    if len(sides) != 2:
        raise ModelCorrupt(f"{WEIGHTS_FILE} has only lora_{next(iter(sides))} of {module}; both lora_A and lora_B are needed.")
    down, up = sides["A"], sides["B"]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise ModelCorrupt(f"{WEIGHTS_FILE}: {module} has A of shape {down.shape} and B of shape {up.shape}; they have no rank in common.")
    rank = config.rank_of(module)
    if down.shape[0] != rank:
        raise ModelCorrupt(f"{WEIGHTS_FILE}: {module} has rank {down.shape[0]}; {CONFIG_FILE} says {rank}.")
    return LoraTensors(down, up, config.scale_of(module, rank))


def _check_targets(config: PeftConfig, sides: Mapping[str, object]) -> None:
    """The modules that the config lists are those that have tensors. Raises: ModelCorrupt."""
    if config.targets is None:
        return
    missing = set(config.targets)
    for module in sides:
        named_by = {target for target in config.targets if module == target or module.endswith("." + target)}
        if not named_by:
            raise ModelCorrupt(f"{WEIGHTS_FILE} holds {module}, which target_modules does not name.")
        missing -= named_by
    if missing:
        raise ModelCorrupt(f"{CONFIG_FILE}: target_modules names {sorted(missing)[0]}, and {WEIGHTS_FILE} has no tensors of it.")


def _unknown_tensor(name: str) -> ModelUnsupported:
    kinds = {
        "lora_magnitude_vector": "DoRA is not supported",
        "lora_embedding_": "adapted embeddings are not supported",
        "modules_to_save": "whole modules beside an adapter are not supported",
        ".bias": "biases are not supported",
    }
    reason = next((reason for part, reason in kinds.items() if part in name), "it is neither lora_A nor lora_B of a linear layer")
    return ModelUnsupported(f"{WEIGHTS_FILE} holds {name[:200]}: {reason}.")


def _refuse_unsupported(fields: Fields) -> None:
    if fields.text("peft_type", "") != "LORA":
        raise fields.unsupported("peft_type", "'LORA'")
    if fields.text("task_type", "CAUSAL_LM") != "CAUSAL_LM":
        raise fields.unsupported("task_type", "'CAUSAL_LM'")
    if fields.text("bias", "none") != "none":
        raise fields.unsupported("bias", "'none'")
    how = fields.values.get("init_lora_weights")
    if not (how is None or isinstance(how, bool) or how in KEPT_BASE):
        raise fields.unsupported("init_lora_weights", OTHER_BASE)
    for name, value in fields.values.items():
        if name not in UNDERSTOOD and name not in HARMLESS and value not in (None, False, "", [], {}):
            raise fields.unsupported(name, "a plain LoRA adapter, without it")


def _targets(fields: Fields) -> tuple[str, ...] | None:
    value = fields.values.get("target_modules")
    if value is None or isinstance(value, str):  # chosen by family, "all-linear", or a regular expression
        return None
    return fields.texts("target_modules")


def _patterns(fields: Fields, name: str) -> Mapping[str, float]:
    inner = fields.inner(name)
    if inner is None:
        return {}
    found: dict[str, float] = {}
    for pattern in inner.values:
        if not PLAIN_PATTERN.fullmatch(pattern):
            raise ModelUnsupported(f"{inner.origin}: {pattern[:200]!r} is a regular expression; supported are names of modules.")
        found[pattern] = inner.integer(pattern, high=MAX_RANK) if name == "rank_pattern" else inner.number(pattern)
    return found


def _by_pattern(values: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that is the module's name, or ends it at a dot; an anchored one is the whole name."""
    for pattern, value in values.items():
        name = pattern.removesuffix("$")
        if module == name.removeprefix("^") or (not name.startswith("^") and module.endswith("." + name)):
            return value
    return default
