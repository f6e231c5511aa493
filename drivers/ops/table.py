"""Ops that are not calls of a model's description: what adapters add, how tokens are drawn, how pages are copied and zeroed.

Each has its definition; `fused` has faster ones for some. What runs the calls themselves, `drivers.ops.implementation` says. A faster one
that disagreed with its definition is quarantined: it is logged, and the definition runs instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from drivers.errors import OpUnsupported
from drivers.ops import drawing, fused, reference
from drivers.ops.drawing import Cuts
from drivers.ops.reference import LoraPair, LoraRows


@dataclass(frozen=True, slots=True)
class OpTable:
    """One implementation per op, called by name. Signatures and meaning are those of the definitions."""

    lora: Callable[[Tensor, Tensor, LoraRows, Sequence[LoraPair | None]], Tensor] = reference.lora
    sample: Callable[[Tensor, Cuts, Tensor], Tensor] = drawing.sample
    page_copy: Callable[[Tensor, int, int], None] = reference.page_copy
    page_zero: Callable[[Tensor, int], None] = reference.page_zero


@dataclass(frozen=True, slots=True)
class FusedOp:
    """A faster implementation of the op of the same name."""

    name: str
    run: Callable[..., object]
    is_available: Callable[[], bool] = lambda: True


FUSED = (FusedOp("lora", fused.lora), FusedOp("sample", fused.sample))


def op_names() -> tuple[str, ...]:
    """Every op there is."""
    return tuple(field.name for field in fields(OpTable))


def fused_table(candidates: tuple[FusedOp, ...] = FUSED) -> OpTable:
    """The reference table with every fused op that this machine can run. Raises: OpUnsupported, if a candidate names no op."""
    unknown = [candidate.name for candidate in candidates if candidate.name not in op_names()]
    if unknown:
        raise OpUnsupported(f"There is no op named {unknown[0]!r}; there are {', '.join(op_names())}.")
    chosen: dict[str, Any] = {candidate.name: candidate.run for candidate in candidates if candidate.is_available()}
    return replace(OpTable(), **chosen)
