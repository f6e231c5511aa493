"""Adapter directories as a stranger writes them: what is read, what is refused and by which name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.models.peft import HARMLESS, UNDERSTOOD, find_changes, read_peft_config

CONFIG: dict[str, object] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
MODULE = "model.layers.0.self_attn.q_proj"
PREFIX = f"base_model.model.{MODULE}."


def write(directory: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: object) -> Path:
    """An adapter of one linear, 6 in and 10 out."""
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    plain = {PREFIX + "lora_A.weight": torch.ones(4, 6), PREFIX + "lora_B.weight": torch.ones(10, 4)}
    save_file(plain if tensors is None else tensors, directory / "adapter_model.safetensors")
    return directory


def read(directory: Path) -> dict[str, float]:
    """The scale of each adapted linear."""
    return {module: change.scale for module, change in find_changes(directory, read_peft_config(directory)).items()}


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"lora_alpha": 1}, 0.25),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"^self_attn.q_proj": 2, "proj": 2}}, 2.0),
        ({"r": 16, "rank_pattern": {"layers.0.self_attn.q_proj$": 4}}, 2.0),
        ({"target_modules": "all-linear"}, 2.0),
        ({"target_modules": "(a+)+$"}, 2.0),
        ({"target_modules": None, "init_lora_weights": "gaussian", "auto_mapping": {"base_model_class": "X"}}, 2.0),
        ({"target_modules": [MODULE], "exclude_modules": ["lm_head"], "layers_to_transform": [0], "lora_dropout": 0.1}, 2.0),
    ],
)
def test_the_scale_of_a_linear_follows_the_config(changes: dict[str, object], scale: float, tmp_path: Path) -> None:
    assert read(write(tmp_path, **changes)) == {MODULE: scale}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"bias": "all"}, "bias"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_qalora": True}, "use_qalora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"something_new": 1}, "something_new"),
        ({"alpha_pattern": {".*q_proj": 2}}, "regular expression"),
        ({"rank_pattern": {"(a+)+": 2}}, "regular expression"),
    ],
)
def test_what_no_code_covers_is_refused_by_the_name_of_its_field(changes: dict[str, object], name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match=name):
        read(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": 1 << 20}, "whole number"),
        ({"r": 8}, "has rank 4; adapter_config.json says 8"),
        ({"rank_pattern": {"q_proj": 5}}, "says 5"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_alpha": "NaN"}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": ["q_proj", "k_proj"]}, "no tensors of it"),
        ({"target_modules": ["k_proj"]}, "does not name"),
        ({"target_modules": ["_proj"]}, "does not name"),
    ],
)
def test_a_config_that_does_not_hold_together_is_corrupt(changes: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match=problem):
        read(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embeddings"),
        ("base_model.model.lm_head.modules_to_save.weight", "whole modules"),
        (PREFIX + "lora_B.bias", "biases"),
        ("model.layers.0.self_attn.q_proj.weight", "neither lora_A nor lora_B"),
    ],
)
def test_a_tensor_that_is_no_lora_of_a_linear_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    tensors = {PREFIX + "lora_A.weight": torch.ones(4, 6), PREFIX + "lora_B.weight": torch.ones(10, 4), name: torch.ones(4)}
    with pytest.raises(ModelUnsupported, match=reason):
        read(write(tmp_path, tensors))


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({}, "no tensors"),
        ({PREFIX + "lora_A.weight": torch.ones(4, 6)}, "only lora_A"),
        ({PREFIX + "lora_A.weight": torch.ones(4, 6), PREFIX + "lora_B.weight": torch.ones(10, 3)}, "no rank in common"),
        ({PREFIX + "lora_A.weight": torch.ones(4), PREFIX + "lora_B.weight": torch.ones(10, 4)}, "no rank in common"),
    ],
)
def test_tensors_that_do_not_belong_together_are_corrupt(tensors: dict[str, torch.Tensor], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match=problem):
        read(write(tmp_path, tensors))


def _without_config(directory: Path) -> None:
    (directory / "adapter_config.json").unlink()


def _with_pickle(directory: Path) -> None:
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")


def _without_weights(directory: Path) -> None:
    (directory / "adapter_model.safetensors").unlink()


def _cut_short(directory: Path) -> None:
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_without_config, "no adapter_config.json"),
        (_with_pickle, "pickled"),
        (_without_weights, "no adapter_model"),
        (_cut_short, "cut short"),
    ],
)
def test_files_that_are_missing_pickled_or_cut_are_refused(spoil: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    spoil(write(tmp_path))
    with pytest.raises((ModelCorrupt, ModelUnsupported), match=sentence):
        read(tmp_path)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["LORA", "none", "all-linear", "q_proj"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(changes=st.dictionaries(st.sampled_from(sorted(UNDERSTOOD | HARMLESS)) | st.text(max_size=12), VALUES, max_size=6))
def test_any_config_is_read_or_refused(changes: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzz-config"
    write(directory, **changes)
    with contextlib.suppress(ModelCorrupt, ModelUnsupported):
        assert find_changes(directory, read_peft_config(directory))


@settings(max_examples=150)
@given(position=st.integers(0, 10_000), content=st.binary(min_size=1, max_size=12))
def test_any_spoiled_weights_are_read_or_refused(position: int, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = write(tmp_path_factory.getbasetemp() / "fuzz-weights")
    weights = directory / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    start = position % len(raw)
    raw[start : start + len(content)] = content
    weights.write_bytes(raw)
    with contextlib.suppress(ModelCorrupt, ModelUnsupported):
        assert find_changes(directory, read_peft_config(directory))
