"""Which instructions the native code of the CPU driver may be compiled for.

    avx512    x86-64 with AVX-512, bfloat16 and 8-bit dot products (Zen 4 and later, Sapphire Rapids and later)
    avx2vnni  x86-64 with AVX2 and 8-bit dot products of its width (Alder Lake and its successors, which have no AVX-512)
    avx2      x86-64 with AVX2, FMA and half floats (2013 and later)
    generic   every other processor: plain C++

All levels lay weights and pages out alike; sums of floats differ in their last bits from level to level, so that a level is part of what a
cached page was computed with.

    KERNELD_ISA   a lower level than the processor's, by name
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

GENERIC = "generic"
AVX2 = "avx2"
AVX2VNNI = "avx2vnni"
AVX512 = "avx512"
CPUINFO = Path("/proc/cpuinfo")

FLAGS = {
    AVX512: (
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16", "-mavx512vbmi"),
        *("-mavx2", "-mfma", "-mf16c", "-mbmi2"),
    ),
    AVX2VNNI: ("-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mavxvnni"),
    AVX2: ("-mavx2", "-mfma", "-mf16c", "-mbmi2"),
    GENERIC: (),
}  # best first
NEEDS = {
    AVX512: {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512vbmi", "avx2", "fma", "f16c", "bmi2"},
    AVX2VNNI: {"avx2", "fma", "f16c", "bmi2", "avx_vnni"},
    AVX2: {"avx2", "fma", "f16c", "bmi2"},
    GENERIC: set[str](),
}


class WrongLevel(Exception):
    """The level asked for is none, or more than this processor has."""


def levels_of(machine: str, cpuinfo: str) -> tuple[str, ...]:
    """Levels that a processor can run, best first, by the kernel's words about it."""
    if machine not in ("x86_64", "AMD64"):
        return (GENERIC,)
    lines = (line for line in cpuinfo.splitlines() if line.startswith("flags"))
    flags = set(next(lines, "").partition(":")[2].split())
    return tuple(level for level, needs in NEEDS.items() if needs <= flags)


@cache
def levels() -> tuple[str, ...]:
    """Levels that this processor can run, best first."""
    try:
        cpuinfo = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        cpuinfo = ""  # nothing known, nothing assumed
    return levels_of(platform.machine(), cpuinfo)


def chosen_level(asked: str = "") -> str:
    """The level asked for, else that of KERNELD_ISA, else the best. Raises: WrongLevel."""
    asked = asked or os.environ.get("KERNELD_ISA", "")
    if not asked:
        return levels()[0]
    if asked not in levels():
        raise WrongLevel(f"instructions of level {asked!r} were asked for (KERNELD_ISA); this processor runs {', '.join(levels())}")
    return asked
