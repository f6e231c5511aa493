"""Checkpoints that the perplexity bench writes stand for the shipped weights, rounded to what their format has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.checkpoints import FORMATS, GGUF_TYPES, write_format, write_gguf
from bench.perplexity import MODEL
from drivers.models.runtime import Runtime
from tests.drivers.models.checkpoint_rig import load

FLOATS = Runtime(torch.float32)
# Of the root of the mean square; half a step of a uniform format is a little less than a third of that.
BOUNDS = {"FP8": 0.04, "W8A8": 0.012, "W4A16": 0.12, "GPTQ": 0.1, "AWQ": 0.1, "Q8_0": 0.008, "Q6_K": 0.025, "Q4_K": 0.1, "Q4_0": 0.12}


def error_of(path: Path) -> float:
    """The largest error of a part of the second layer, of its own size."""
    _, expected = load(MODEL, FLOATS)
    _, found = load(path, FLOATS)
    errors = [(found[2][name] - part).square().mean().sqrt() / part.square().mean().sqrt() for name, part in expected[2].items()]
    return float(max(errors))


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_of_safetensors_is_the_model_rounded(form: str, tmp_path: Path) -> None:
    bound = next(bound for word, bound in BOUNDS.items() if word in form)
    assert 0.0 < error_of(write_format(MODEL, form, tmp_path / "model")) < bound


@pytest.mark.parametrize("kind", GGUF_TYPES, ids=lambda kind: kind.name)
def test_a_type_of_gguf_is_the_model_rounded(kind: object, tmp_path: Path) -> None:
    [kind_of] = [each for each in GGUF_TYPES if each is kind]
    assert 0.0 < error_of(write_gguf(MODEL, kind_of, tmp_path / "model")) < BOUNDS[kind_of.name]
