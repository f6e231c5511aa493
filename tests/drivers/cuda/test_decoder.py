"""Layers run one behind the other add and norm at once across their border; a range of them by itself ends with the plain residual."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drivers.cuda.decoder import CudaDecoder
from drivers.cuda.loading import idle_step
from drivers.triton.definitions import add_rms_norm
from drivers.triton.layout import StepRows
from drivers.triton.table import DEFINITIONS
from tests.drivers.cpu_rig import save_model
from tests.drivers.cuda.cuda_rig import CudaRig

NUM_TOKENS = 9


def made(directory: Path, family: str) -> tuple[CudaDecoder, StepRows]:
    """A model of three layers, and a step of tokens that nobody has, each of which sees itself alone."""
    save_model(directory, family)
    rig = CudaRig(directory)
    model = rig.driver._loaded.models[1]
    step = idle_step(rig.device, model.decoder.heads.num_queries_per_kv, NUM_TOKENS, (model.seats.nobody, model.seats.tables))
    return model.decoder, replace(step, tokens=torch.arange(3, 3 + NUM_TOKENS))


def plain(decoder: CudaDecoder) -> CudaDecoder:
    """The same, list by list."""
    return replace(decoder, borders=())


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Olmo2", "Qwen3"])
def test_joined_lists_compute_what_lists_apart_do(tmp_path: Path, family: str) -> None:
    decoder, step = made(tmp_path, family)
    hidden = plain(decoder).forward(step)

    assert torch.equal(decoder.forward(step), hidden)
    assert torch.equal(decoder.all_logits(step), plain(decoder).logits(hidden, step))


def test_a_range_of_layers_ends_with_the_plain_residual(tmp_path: Path) -> None:
    decoder, step = made(tmp_path, "Llama")
    expected = decoder.forward(step)

    half = decoder.run_layers(decoder.first(step), step, range(2))

    assert torch.equal(half, plain(decoder).run_layers(decoder.first(step), step, range(2)))
    assert torch.equal(decoder.run_layers(half, step, range(2, 3)), expected)


@pytest.mark.parametrize(("family", "alone"), [("Llama", 1), ("Gemma2", 7), ("Olmo2", 12)])
def test_so_many_norms_stay_without_an_add(tmp_path: Path, family: str, alone: int) -> None:
    counted = []

    def norm(x: Tensor, weight: Tensor, eps: float, has_unit_offset: bool) -> Tensor:
        counted.append(1)
        return DEFINITIONS.rms_norm(x, weight, eps, has_unit_offset)

    decoder, step = made(tmp_path, family)
    replace(decoder, kernels=replace(DEFINITIONS, rms_norm=norm, add_rms_norm=add_rms_norm)).all_logits(step)

    assert len(counted) == alone
