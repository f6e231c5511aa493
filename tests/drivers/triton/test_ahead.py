"""Everything that the CUDA driver can launch compiles ahead of time for A100 and H100, and fits their registers and shared memory.

This says nothing of speed, and little of right or wrong; it says that a device would take it.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.drivers.triton.ahead import Told

ROOT = Path(__file__).resolve().parents[3]
SHARED_BYTES = {
    80: 99 << 10,
    90: 227 << 10,
}  # of a program; sm_80 has 163 KiB, but sm_86 and sm_89 run what is compiled for it, and have 99
SPILLED_BYTES = 256  # of a thread, at most: a tile of 64 rows of heads of 128 over 8-bit pages comes near


def run(module: str) -> str:
    """What a program prints whose kernels are not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", f"tests.drivers.triton.{module}"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@cache
def compiled() -> tuple[Told, ...]:
    """What the compiler says of every launch."""
    return tuple(Told(**json.loads(line)) for line in run("ahead").splitlines())


def launched_kernels() -> set[str]:
    """Names that something is launched by, in the source of the driver's kernels."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "drivers" / "triton").glob("*.py")]
    calls = [node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        call.value.id
        for call in calls
        if isinstance(call, ast.Subscript) and isinstance(call.value, ast.Name) and call.value.id.startswith("_")
    }


def test_every_launch_compiles_for_every_architecture() -> None:
    assert [told for told in compiled() if told.error] == []


@pytest.mark.parametrize("architecture", list(SHARED_BYTES))
def test_every_kernel_is_among_the_launches(architecture: int) -> None:
    assert {told.name for told in compiled() if told.architecture == architecture} == launched_kernels()


@pytest.mark.parametrize("architecture", list(SHARED_BYTES))
def test_every_launch_fits_the_shared_memory(architecture: int) -> None:
    too_large = [told for told in compiled() if told.architecture == architecture and told.shared_bytes > SHARED_BYTES[architecture]]

    assert too_large == []


def test_values_that_are_computed_with_stay_in_registers() -> None:
    assert [told for told in compiled() if told.spilled_bytes > SPILLED_BYTES] == []


def test_models_that_there_are_launch_nothing_that_was_not_compiled_and_fixed_ones_the_same_in_every_step() -> None:
    assert run("known") == ""
