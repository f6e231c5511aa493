"""A row whose numbers are not finite fails alone in every format in which native code computes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.drivers.cpu_rig import GREEDY, CpuRig, prompt_of, save_model

BAD_TOKEN = 150


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_in_bfloat16_a_row_that_is_not_finite_fails_alone(tmp_path: Path, bad: float) -> None:
    save_model(tmp_path, "Llama")
    path = tmp_path / "model.safetensors"
    clean = [token if token != BAD_TOKEN else 151 for token in prompt_of(30, 9)]
    sound = CpuRig(tmp_path, dtype="bfloat16")
    expected = sound.run([(1, 30)], 3, [sound.start(1, clean, GREEDY, 8)])
    sound.driver.close()

    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][BAD_TOKEN, 5] = bad
    save_file(tensors, path)
    rig = CpuRig(tmp_path, dtype="bfloat16")
    assert rig.driver._loaded.models[1].is_native
    poisoned = [*prompt_of(20, 1)[:19], BAD_TOKEN]
    steps = rig.run([(0, 20), (1, 30)], 3, [rig.start(0, poisoned, GREEDY, 8), rig.start(1, clean, GREEDY, 8)])
    rig.driver.close()

    assert "not finite" in steps[0][0].error
    assert [each[1].tokens for each in steps] == [each[1].tokens for each in expected]
    assert 0 not in steps[1]
