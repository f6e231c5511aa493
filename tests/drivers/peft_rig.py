"""Made-up LoRA adapters in PEFT form, and the same models with an adapter's change merged into their weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save_adapter(
    directory: Path, model: transformers.PreTrainedModel, targets: Iterable[str] = ALL, seed: int = 0, size: float = 0.3, **config: object
) -> dict[str, Tensor]:
    """Write a random adapter for a model; answers the change of each weight of the model by its name. `config` overrides the fields."""
    targets = tuple(targets)
    fields: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/else",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": list(targets),
        **config,
    }
    random = torch.Generator().manual_seed(500 + seed)
    tensors: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        is_turned = isinstance(module, Conv1D)  # its weight is stored [in, out]
        if not (is_turned or isinstance(module, torch.nn.Linear)) or name.rsplit(".", 1)[-1] not in targets:
            continue
        rank, scale = _rank_and_scale(fields, name)
        columns, rows = module.weight.shape if is_turned else reversed(module.weight.shape)
        down = torch.randn(rank, columns, generator=random) * size
        up = torch.randn(rows, rank, generator=random) * size / math.sqrt(rank * columns)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
        changes[f"{name}.weight"] = scale * ((up @ down).T if is_turned else up @ down)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, directory / "adapter_model.safetensors")
    return changes


def _rank_and_scale(fields: dict[str, object], name: str) -> tuple[int, float]:
    rank, alpha = _pattern(fields, "rank_pattern", name, "r"), _pattern(fields, "alpha_pattern", name, "lora_alpha")
    return int(rank), alpha / math.sqrt(rank) if fields.get("use_rslora") else alpha / rank


def _pattern(fields: dict[str, object], patterns: str, name: str, default: str) -> float:
    found = fields.get(patterns) or {}
    assert isinstance(found, dict)
    value = next((value for pattern, value in found.items() if name.endswith(pattern.strip("^$"))), fields[default])
    assert isinstance(value, int | float)
    return value


def merged(model: transformers.PreTrainedModel, changes: dict[str, Tensor]) -> transformers.PreTrainedModel:
    """The same model with the changes added to its weights."""
    other: transformers.PreTrainedModel = type(model)(model.config).eval()
    state = model.state_dict()
    other.load_state_dict({name: weight + changes[name] if name in changes else weight for name, weight in state.items()})
    return other
