"""What the split driver is told by `OpenSpec.options`.

parts     the devices, in the order of a forward pass: "cuda,cpu"; by default "cpu,cpu"
shares    what part of the memory, and with it of every model's layers, each has: "20,44"; by default, all the same
N.NAME    option NAME of device N, counted from 0: "0.device", "1.cpus"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivers.errors import OptionUnknown
from drivers.registry import check_options

KINDS = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """Read and found good."""

    parts: tuple[str, ...]
    shares: tuple[int, ...]
    options: tuple[Mapping[str, str], ...]  # of each part

    @property
    def devices(self) -> tuple[tuple[str, str], ...]:
        """Which device each part is on: the driver, and the number that it has there. Parts may share one."""
        return tuple((part, own.get("device", "0")) for part, own in zip(self.parts, self.options, strict=True))

    @classmethod
    def read(cls, options: Mapping[str, str]) -> SplitOptions:
        """Raises: OptionUnknown, for one that there is not, and for a value that it does not take."""
        parts = tuple(part.strip() for part in options.get("parts", "cpu,cpu").split(","))
        if len(parts) < 2 or any(part not in KINDS for part in parts):
            raise OptionUnknown(f"parts is {options['parts']!r}; it is two or more of {', '.join(KINDS)}, such as cuda,cpu.")
        shares = options.get("shares", ",".join("1" * len(parts))).split(",")
        if len(shares) != len(parts) or any(not share.strip().isdecimal() or int(share) == 0 for share in shares):
            raise OptionUnknown(f"shares is {options['shares']!r}; it is a whole number for each of the {len(parts)} parts, such as 1,2.")
        found: list[dict[str, str]] = [{} for _ in parts]
        for name, value in options.items():
            number, dot, own = name.partition(".")
            if dot and number.isdecimal() and int(number) < len(parts):
                found[int(number)][own] = value
            elif name not in ("parts", "shares"):
                known = f"parts, shares, and 0.NAME to {len(parts) - 1}.NAME for those of its parts"
                raise OptionUnknown(f"The split driver has no option {name}; it has {known}.")
        for part, own_options in zip(parts, found, strict=True):
            check_options(part, own_options)
        return cls(parts, tuple(int(share) for share in shares), tuple(found))
