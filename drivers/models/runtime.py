"""How a model is run, as far as its weights depend on it: which form each part gets in the arena.

A checkpoint that holds integers keeps them. Otherwise `quant` says what becomes of the floats of its matrices:

    ""       nothing: floats of the compute dtype
    "int8"   int8 by row: the linears of the layers, the embedding and the head
    "int4"   int4 in groups of 32 for the linears of the layers; int8 by row for embedding and head, and for columns in no multiple of 32

The router of a mixture of experts and position embeddings are always floats, and so are vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

import torch

from drivers.errors import ModelUnsupported
from drivers.models.parts import PartSpec
from drivers.models.storage import GROUP_UNIT, Kind, Storage
from drivers.models.weight import KINDS

QUANTIZATIONS = ("int8", "int4")
KV_QUANTIZATIONS = ("int8", "fp8")
FLOAT_PARTS = ("router", "position_embedding")
TABLES = ("embedding", "head")  # whose rows are tokens


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs a model: native code, for which matrices lie in panels and vectors are float32, or torch."""

    dtype: torch.dtype
    is_native: bool = False
    quant: str = ""
    kv_quant: str = ""

    @property
    def name(self) -> str:
        """What of it changes the bits of a page."""
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind}{'/native' if self.is_native else ''}/weights-{self.quant or kind}/kv-{self.kv_quant or kind}"


def form_of(part: PartSpec, runtime: Runtime, stored: Sequence[Storage], head_dim: int = 0) -> Storage:
    """The form of a part whose sources are stored in these forms; `head_dim`, if its columns change their places by whole heads."""
    if len(part.shape) == 1:
        return Storage(Kind.FLOAT32 if runtime.is_native else KINDS[runtime.dtype])
    columns = part.shape[-1]
    return replace(_matrix_form(part.name, columns, runtime, _common(stored, columns, head_dim)), is_panels=runtime.is_native)


def check_quant(runtime: Runtime) -> None:
    """Whether there is such a quantization. Raises: ModelUnsupported."""
    if runtime.quant and runtime.quant not in QUANTIZATIONS:
        raise ModelUnsupported(f"quant is {runtime.quant!r}; supported are {', '.join(QUANTIZATIONS)}, and none ('').")
    if runtime.kv_quant and runtime.kv_quant not in KV_QUANTIZATIONS:
        raise ModelUnsupported(f"kv_quant is {runtime.kv_quant!r}; supported are {', '.join(KV_QUANTIZATIONS)}, and none ('').")
    if runtime.kv_quant and not runtime.is_native:
        raise ModelUnsupported(f"kv_quant is {runtime.kv_quant!r}; that is for models that run natively, which this one does not.")


def _matrix_form(name: str, columns: int, runtime: Runtime, stored: Storage | None) -> Storage:
    if name in FLOAT_PARTS:
        return Storage(KINDS[runtime.dtype])
    if stored is not None:
        return stored
    if runtime.quant == "int8" or (runtime.quant and (name in TABLES or columns % GROUP_UNIT)):
        return Storage(Kind.INT8)
    return Storage(Kind.INT4, GROUP_UNIT) if runtime.quant else Storage(KINDS[runtime.dtype])


def _common(stored: Sequence[Storage], columns: int, head_dim: int) -> Storage | None:
    """A form that holds integers of all of these without loss; None, if there is none: they become floats."""
    kinds = {each.kind for each in stored}
    if not stored or len(kinds) > 1 or not stored[0].is_quantized:
        return None
    has_offsets = any(each.has_offsets for each in stored)
    if not any(each.group for each in stored) and not has_offsets:
        return Storage(stored[0].kind)
    group = gcd(columns, head_dim or columns, *(each.group for each in stored))
    is_whole = all(each.group == 0 for each in stored)
    if is_whole:
        return Storage(stored[0].kind, 0, has_offsets)
    return Storage(stored[0].kind, group, has_offsets) if group % GROUP_UNIT == 0 else None
