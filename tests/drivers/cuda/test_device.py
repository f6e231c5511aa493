"""How errors of a real device become ours; the rest of that file needs one."""

from __future__ import annotations

import pytest
import torch

from drivers.cuda.device import check_device, translated
from drivers.errors import DeviceLost, DeviceOutOfMemory, DriverUnavailable

ERRORS = (torch.AcceleratorError("CUDA error: illegal address\nand so on"), RuntimeError("Triton Error [CUDA]: misaligned"))


@pytest.mark.parametrize("error", ERRORS, ids=["torch", "triton"])
def test_an_error_of_the_device_means_that_it_is_lost(error: RuntimeError) -> None:
    with pytest.raises(DeviceLost, match=str(error).splitlines()[0].replace("[", r"\[")), translated("GPU-0"):
        raise error


def test_memory_that_is_not_there_is_told_and_leaves_the_device_whole() -> None:
    with pytest.raises(DeviceOutOfMemory, match="Tried to allocate 2 GiB") as told, translated("GPU-0", 2 << 30):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nand so on")

    assert told.value.needed_bytes == 2 << 30


def test_a_mistake_of_ours_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), translated("GPU-0"):
        raise RuntimeError("shapes do not fit")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_a_torch_without_cuda_cannot_be_checked_further() -> None:
    with pytest.raises(DriverUnavailable):
        check_device(0)
