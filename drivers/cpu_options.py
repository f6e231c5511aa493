"""What the CPU driver is told by `OpenSpec.options` (`drivers.options` of the configuration).

native    "on" (default) or "off": native code where it covers a model; off: torch alone
isa       instructions of native code, lower than the processor's best: "avx512", "avx2vnni", "avx2" or "generic"
cpus      processors that compute, "0-3,8": one native thread on each, and torch's on all of them; by default, all the process may use
disagree  implementations that are taken to disagree with their definitions, "native.linear_add,torch.act_mul": for tests of quarantine
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from drivers.errors import OptionUnknown
from drivers.native.isa import levels

NAMES = ("cpus", "disagree", "isa", "native")


@dataclass(frozen=True, slots=True)
class CpuOptions:
    """Read and found good."""

    is_native: bool = True
    isa: str = ""
    cpus: tuple[int, ...] = ()
    disagree: frozenset[str] = frozenset()

    @classmethod
    def read(cls, options: Mapping[str, str]) -> CpuOptions:
        """Raises: OptionUnknown, for one that there is not, and for a value that it does not take."""
        unknown = sorted(options.keys() - set(NAMES))
        if unknown:
            raise OptionUnknown(f"The cpu driver has no option {', '.join(unknown)}; it has {', '.join(NAMES)}.")
        native, isa = options.get("native", "on"), options.get("isa", "")
        if native not in ("on", "off"):
            raise OptionUnknown(f"native is {native!r}; it is on or off.")
        if isa and isa not in levels():
            raise OptionUnknown(f"isa is {isa!r}; this processor runs {', '.join(levels())}.")
        names = frozenset(name.strip() for name in options.get("disagree", "").split(",") if name.strip())
        return cls(native == "on", isa, _cpus(options.get("cpus", "")), names)


def _cpus(text: str) -> tuple[int, ...]:
    """Processors of a list such as `0-3,8`, each of which this process may use. Raises: OptionUnknown."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise OptionUnknown(f"cpus is {text!r}; it is a list such as 0-3,8.")
        found += range(int(first), int(last or first) + 1)
    usable = os.sched_getaffinity(0)
    gone = [cpu for cpu in found if cpu not in usable]
    if gone:
        raise OptionUnknown(f"cpus names {gone[0]}; this process may use {', '.join(map(str, sorted(usable)))}.")
    return tuple(dict.fromkeys(found))
