"""Compiles the kernels of the CUDA driver for devices that are not here: `python -m tests.drivers.triton.ahead [all]`.

What the driver can launch says `tests.drivers.triton.space`; every configuration is compiled as the device would have it, but for such as
take the same room as another or less (`spanning`); with `all`, those too. One line of JSON for each: its name, the bytes of shared memory,
registers of a thread, bytes of memory that a thread's values spill to, and the error, if there was one. What it leaves on disk lies in a
folder of its own, and goes with it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from multiprocessing import get_context

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from tests.drivers.triton.launch import Launch, spanning
from tests.drivers.triton.space import launches

ARCHITECTURES = (80, 90)


@dataclass(frozen=True)
class Told:
    """What the compiler says of a launch."""

    architecture: int
    name: str
    kind: str  # of number that is computed with
    constants: dict[str, str]
    options: dict[str, int]
    shared_bytes: int = 0
    registers: int = 0
    spilled_bytes: int = 0
    error: str = ""


def compiled(architecture: int, launch: Launch) -> Told:
    """Compile one launch."""
    constants = {launch.kernel.arg_names[place[0]]: str(value) for place, value in launch.constants.items()}
    named = (architecture, launch.name, launch.number, constants, launch.options)
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    log = StringIO()
    try:
        with redirect_stdout(log):
            binary = compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    except Exception as error:  # noqa: BLE001  (whatever it is, it is told)
        return Told(*named, error=f"{type(error).__name__}: {error}")
    return Told(*named, binary.metadata.shared, *used(log.getvalue()))


def used(log: str) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, as the assembler tells them."""
    return int(re.findall(r"Used (\d+) registers", log)[-1]), int(re.findall(r"(\d+) bytes stack frame", log)[-1])


def work(part: tuple[int, int, bool]) -> list[Told]:
    """Compile every `of`-th launch, from the `first` on: each process finds out by itself what there is."""
    first, of, is_all = part
    triton.knobs.nvidia.dump_ptxas_log = True
    found = [(each, launch) for each in ARCHITECTURES for launch in spanning(launches(each), alike=not is_all)]
    return [compiled(architecture, launch) for architecture, launch in found[first::of]]


def all_compiled(num_processes: int = 2, *, is_all: bool) -> Iterable[Told]:
    """Everything, on some processes."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # before they start
        with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
            for found in pool.map(work, [(first, num_processes, is_all) for first in range(num_processes)]):
                yield from found


if __name__ == "__main__":
    for each in all_compiled(is_all="all" in sys.argv):
        print(json.dumps(asdict(each)), flush=True)  # noqa: T201
