"""What the CUDA driver tells its kernels of a mixture of experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from drivers.ops.calls import ExpertSettings
from drivers.triton.matrix import Stacks
from drivers.triton.table import DEFINITIONS
from tests.drivers.cpu_rig import prompt_of
from tests.drivers.cuda.cuda_rig import CudaRig
from tests.drivers.family_rig import save_family


def test_experts_are_told_which_lanes_of_a_decode_step_somebody_uses(tmp_path: Path) -> None:
    told: list[tuple[int, ...]] = []

    def watched(x: Tensor, router: Tensor, stacks: Stacks, settings: ExpertSettings, lanes: Tensor | None) -> Tensor:
        told.append(() if lanes is None else tuple(lanes[:, 2].tolist()))
        return DEFINITIONS.experts(x, router, stacks, settings, lanes)

    save_family(tmp_path, "mixtral", num_hidden_layers=1)
    rig = CudaRig(tmp_path, kernels=replace(DEFINITIONS, experts=watched), options={"run_ahead": "0"})
    told.clear()

    rig.run([(slot, 5) for slot in range(3)], 3, starts=[rig.start(slot, prompt_of(5, slot), room=8) for slot in range(3)])

    assert told == [(), (1, 1, 1, 0), (1, 1, 1, 0)]  # a prefill, and two steps of three rows in four lanes
