"""What can run a call: records of implementations, each with what it covers, when it applies and what it costs.

An **implementation** stands for a run of primitive calls, one behind the other, each of which takes what the one before it gave as its
first input. `drivers.ops.fusion` covers a model's calls with them. Costs are relative: reading the values of a step once is 1.

    provider    who runs it
    reference   the definitions, one by one
    torch       a few torch calls, on any machine
    native      C++ on the host CPU, lowered once (drivers.native)
    triton      kernels of an accelerator (drivers.cuda)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from drivers.ops import fused, running
from drivers.ops.calls import AttentionSettings, Call, RopeSettings
from drivers.ops.experts import grouped_experts
from drivers.ops.ragged import HeadShape, RaggedBatch
from drivers.ops.reference import LayerKv, Rotation
from drivers.ops.running import DEFINITIONS, Run, run_definition, setting
from drivers.ops.table import op_names as table_ops


@dataclass(frozen=True, slots=True)
class Shapes:
    """What an implementation may ask about the model that a call belongs to."""

    heads: HeadShape
    page_tokens: int
    hidden_size: int
    dtype: str
    parts: Mapping[str, tuple[int, ...]]  # that the call's segment has


Supports = Callable[[Call, Shapes], str]


def always(_call: Call, _shapes: Shapes) -> str:
    """It applies to all shapes."""
    return ""


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to run a run of calls."""

    op: str  # of the call that stands for the run
    covers: tuple[str, ...]  # primitive ops, in order
    provider: str
    cost: float
    run: Run = run_definition  # how Python runs it; native code is lowered, and runs by its definition only when it is compared
    supports: Supports = always  # why it does not apply to a call; "": it does
    visible: tuple[int, ...] = (-1,)  # of the calls covered, those whose outputs may be read afterwards; the others stay inside
    overwrites: bool = False  # its first input is not what it was afterwards, so nobody may read that

    @property
    def name(self) -> str:
        """As reports show it."""
        return f"{self.provider}.{self.op}"


def _needs_flash(_call: Call, _shapes: Shapes) -> str:
    return "" if fused.has_flash_attention() else "this torch has no attention kernel for CPUs"


def _attention_applies(call: Call, shapes: Shapes) -> str:
    if setting(call, AttentionSettings).softcap:
        return "torch's attention kernel knows no softcap"
    return _needs_flash(call, shapes)


def _rope_applies(call: Call, shapes: Shapes) -> str:
    turned = setting(call, RopeSettings).num_dims
    if turned != shapes.heads.head_dim:
        return f"only {turned} of {shapes.heads.head_dim} dimensions are turned"
    return _attention_applies(call, shapes)


def _paged_attention(queries: Tensor, kv: LayerKv, batch: RaggedBatch, scale: float, _softcap: float) -> tuple[Tensor, Tensor]:
    return fused.paged_attention(queries, kv, batch, scale)


def _rope_attention(qkv: Tensor, rotation: Rotation, kv: LayerKv, batch: RaggedBatch, scale: float) -> Tensor:
    return fused.paged_attention(fused.rope_kv_write(qkv, rotation, kv, batch), kv, batch, scale)[0].flatten(1)


REFERENCE = tuple(Implementation(op, (op,), "reference", 8.0, run) for op, run in DEFINITIONS.items())
TORCH = (
    Implementation("rms_norm", ("rms_norm",), "torch", 4.0, running.rms_norm(fused.rms_norm)),
    Implementation("add_rms_norm", ("add", "rms_norm"), "torch", 5.0, running.add_rms_norm(fused.add_rms_norm), visible=(0, 1)),
    Implementation("head_norm", ("head_norm",), "torch", 4.0, running.head_norm(fused.head_norm), overwrites=True),
    Implementation("kv_write", ("kv_write",), "torch", 4.0, running.kv_write(fused.kv_write)),
    Implementation(
        "paged_attention", ("paged_attention",), "torch", 4.0, running.paged_attention(_paged_attention), supports=_attention_applies
    ),
    Implementation(
        "rope_attention",
        ("rope", "kv_write", "paged_attention"),
        "torch",
        6.0,
        running.rope_attention(_rope_attention),
        supports=_rope_applies,
        overwrites=True,
    ),
    Implementation("experts", ("experts",), "torch", 4.0, running.experts(grouped_experts)),
    Implementation("act_mul", ("act_mul",), "torch", 4.0, running.act_mul(fused.act_mul), overwrites=True),
)


def op_names() -> tuple[str, ...]:
    """Every op there is: primitive ones, what stands for runs of them, and those that are no calls."""
    return tuple(sorted({*table_ops(), *(each.op for each in (*REFERENCE, *TORCH))}))
