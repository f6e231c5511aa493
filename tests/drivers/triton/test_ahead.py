"""Every kernel compiles, ahead of time, for the shapes of real models on A100 and H100, and fits their shared memory.

This says nothing of speed, and little of right or wrong; it says that a device would take it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}
SMALL_DEVICES = 99 << 10  # of shared memory on sm_86 and sm_89
KERNELS = {
    "_rms_norm", "_act_mul", "_sample", "_prepare", "_append", "_copy", "_clear_tail", "_attend", "_merge", "_rope_kv_write", "_linear",
    "_dequantize",
}  # fmt: skip


@cache
def compiled(architecture: int) -> tuple[dict[str, object], ...]:
    """What the compiler says of every launch."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.drivers.triton.ahead", str(architecture)]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return tuple(json.loads(line) for line in finished.stdout.splitlines())


@pytest.mark.parametrize("architecture", list(SHARED_BYTES))
def test_every_kernel_compiles_for_real_shapes(architecture: int) -> None:
    errors = [f"{told['name']} {told['constants']}: {told['error']}" for told in compiled(architecture) if told["error"]]

    assert errors == []
    assert {told["name"] for told in compiled(90)} == KERNELS


@pytest.mark.parametrize("architecture", list(SHARED_BYTES))
def test_every_kernel_fits_the_shared_memory(architecture: int) -> None:
    largest = max(int(str(told["shared"])) for told in compiled(architecture))

    assert 0 < largest <= min(SHARED_BYTES[architecture], SMALL_DEVICES if architecture < 90 else SHARED_BYTES[90])
