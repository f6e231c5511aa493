"""What a kernel would be compiled for, written down in place of a launch.

Two launches that differ in numbers alone share a **configuration**: the types of what pointers point to, the constants that kernels are cut
by (tiles), the options. Flags, and the kinds of other numbers, are **features**: each has to occur, but not with every configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64", torch.int8: "i8", torch.uint8: "u8",
    torch.int32: "i32", torch.int64: "i64", torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")
CUTTING_FLAGS = {"IS_4_BIT", "HAS_OFFSETS"}  # flags that change what a tile takes
NAMED_BY_FLAGS = {"offset_ptr", "bias_ptr", "index_ptr"}  # something else stands in their place where they are not used
# Numbers of a model, by which no kernel is cut: they are multiplied with, compared with, or are the length of a loop. Of all others,
# every value counts.
NUMBERS = {
    "J", "H", "G", "GP", "D", "P", "WINDOW", "GROUP", "TURNED", "LARGEST", "PIECE", "INTS", "CUTS", "STOPS", "FUNCTION",
    "EXPERTS", "BINS",
}  # fmt: skip


@dataclass
class Launch:
    """A kernel, the types of its arguments, and its constants."""

    kernel: JITFunction[Any]
    signature: dict[str, str] = field(default_factory=dict)
    constants: dict[tuple[int, ...], Any] = field(default_factory=dict)
    attributes: dict[tuple[int, ...], list[list[Any]]] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self.kernel.__name__

    @property
    def number(self) -> str:
        """The widest kind of float among what pointers point to, but for sums and scales: what a kernel computes with."""
        kinds = [kind.removeprefix("*") for kind in self.signature.values()]
        return next((kind for kind in ("bf16", "fp16") if kind in kinds), "fp32")

    @property
    def key(self) -> str:
        """The same for launches that share a binary."""
        constants = [(place[0], str(value)) for place, value in self.constants.items()]
        return json.dumps([self.name, self.signature, constants, sorted(self.attributes), self.options])

    @property
    def height(self) -> int:
        """Tokens of a tile over quantized weights; 0 of all other kernels."""
        named = dict(self._named())
        return int(named.get(self._height_name, 0)) if "*u8" in self.signature.values() else 0

    def configuration(self, *, alike: bool = False) -> str:
        """See the head of the file; `alike`: see `spanning`."""
        pointers = [(name, kind) for name, kind in self.signature.items() if kind.startswith("*") and name not in NAMED_BY_FLAGS]
        left_out = {self._height_name} if alike and self.height else set()
        constants = [(name, value) for name, value in self._named() if not self._is_feature(name, value) and name not in left_out]
        told = json.dumps([self.name, pointers, constants, self.options])
        return told.replace("fp16", "bf16") if alike else told

    @property
    def _height_name(self) -> str:
        return "TOKENS" if self.name == "_linear" else "ROWS"

    @property
    def features(self) -> set[str]:
        """See the head of the file."""
        return {f"{self.name} {name} {_kind(value)}" for name, value in self._named() if self._is_feature(name, value)}

    def _named(self) -> list[tuple[str, Any]]:
        return [(self.kernel.arg_names[place[0]], value) for place, value in self.constants.items()]

    def _is_feature(self, name: str, value: object) -> bool:
        return name in NUMBERS or (isinstance(value, bool) and name not in CUTTING_FLAGS)


def recorded(run: Callable[[], object]) -> list[Launch]:
    """What `run` would launch."""
    launches: list[Launch] = []

    def getitem(kernel: JITFunction[Any], _grid: object) -> Callable[..., None]:
        return lambda *args, **options: launches.append(_launch(kernel, args, options))

    real, JITFunction.__getitem__ = JITFunction.__getitem__, getitem  # type: ignore[assignment, method-assign]
    try:
        run()
    finally:
        JITFunction.__getitem__ = real  # type: ignore[method-assign]
    return launches


def spanning(launches: Iterable[Launch], *, alike: bool) -> list[Launch]:
    """Launches that have every configuration and every feature of all.

    `alike`: what takes the same room or less counts as one configuration, and as a feature: bfloat16 and float16; tiles over quantized
    weights that are less high, of which the highest is kept.
    """
    configurations: set[str] = set()
    features: set[str] = set()
    kept: dict[str, Launch] = {}
    for launch in sorted(launches, key=lambda launch: -launch.height) if alike else launches:
        configuration, mine = launch.configuration(alike=alike), launch.features | {f"{launch.name} {launch.number} {launch.height}"}
        if configuration not in configurations or not mine <= features:
            kept.setdefault(launch.key, launch)
            configurations.add(configuration)
            features |= mine
    return list(kept.values())


def _launch(kernel: JITFunction[Any], args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    launch = Launch(kernel, options={name: options.pop(name) for name in OPTIONS if name in options})
    values = dict(zip(kernel.arg_names, args, strict=False)) | options
    for idx, name in enumerate(kernel.arg_names):
        value, parameter = values[name], kernel.params[idx]
        is_special = not parameter.do_not_specialize
        if parameter.is_constexpr or (is_special and isinstance(value, int) and value == 1):
            launch.signature[name] = "constexpr"
            launch.constants[(idx,)] = value
            continue
        launch.signature[name] = _type(value)
        if is_special and (isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)):
            launch.attributes[(idx,)] = [["tt.divisibility", 16]]
    return launch


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, int):
        return "i32" if abs(value) < 1 << 31 else "i64"
    return "fp32"


def _kind(value: object) -> str:
    """Numbers are none, one, or some."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return "none" if value == 0 else "one" if value == 1 else "some"
