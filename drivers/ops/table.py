"""Which implementation of each op a model runs, and the check that it may.

Every op has its definition in `reference`; `fused` has faster ones for some. A fused implementation is taken if the machine has what it
needs and it agreed with the definition on the shapes of the model at load. One that disagrees is quarantined for that model: it is
logged, and the definition runs instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from drivers.errors import OpUnsupported
from drivers.ops import fused, reference
from drivers.ops.ragged import RaggedBatch
from drivers.ops.reference import Cuts, LayerKv, LoraPair, LoraRows, Rotation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpTable:
    """One implementation per op, called by name. Signatures and meaning are those of `drivers.ops.reference`."""

    embed: Callable[[Tensor, Tensor], Tensor] = reference.embed
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = reference.linear
    lora: Callable[[Tensor, Tensor, LoraRows, Sequence[LoraPair | None]], Tensor] = reference.lora
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = reference.rms_norm
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor] = reference.add_rms_norm
    swiglu: Callable[[Tensor], Tensor] = reference.swiglu
    rope_kv_write: Callable[[Tensor, Rotation, LayerKv, RaggedBatch], Tensor] = reference.rope_kv_write
    paged_attention: Callable[[Tensor, LayerKv, RaggedBatch], tuple[Tensor, Tensor]] = reference.paged_attention
    sample: Callable[[Tensor, Cuts, Tensor], Tensor] = reference.sample
    page_copy: Callable[[Tensor, int, int], None] = reference.page_copy
    page_zero: Callable[[Tensor, int], None] = reference.page_zero


@dataclass(frozen=True, slots=True)
class FusedOp:
    """A faster implementation of the op of the same name."""

    name: str
    run: Callable[..., object]
    is_available: Callable[[], bool] = lambda: True


FUSED = (
    FusedOp("lora", fused.lora),
    FusedOp("rms_norm", fused.rms_norm),
    FusedOp("add_rms_norm", fused.add_rms_norm),
    FusedOp("swiglu", fused.swiglu),
    FusedOp("rope_kv_write", fused.rope_kv_write),
    FusedOp("paged_attention", fused.paged_attention, fused.has_flash_attention),
    FusedOp("sample", fused.sample),
)


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


def quarantine(table: OpTable, disagreements: dict[str, float]) -> OpTable:
    """The table with the reference in place of each op that disagreed; `disagreements` gives the largest error of each."""
    for name, error in disagreements.items():
        logger.error("A fused op disagrees with its definition and is not used.", extra={"op": name, "error": error})
    plain = OpTable()
    return replace(table, **{name: getattr(plain, name) for name in disagreements})
