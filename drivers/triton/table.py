"""The ops of the CUDA driver that are not the library's: as kernels, or as their definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from drivers.ops.calls import Activation, ExpertSettings
from drivers.triton import definitions
from drivers.triton.layout import Angles, AttentionShape, KvShape, LayerKv, LoraPlaces, Norms, Place, StepRows
from drivers.triton.matrix import QuantMatrix, Stacks


@dataclass(frozen=True, slots=True)
class KernelTable:
    """One implementation of each. Meaning and arguments are those of `drivers.triton.definitions`."""

    paged_attention: Callable[[Tensor, LayerKv, Tensor, StepRows, AttentionShape], tuple[Tensor, Tensor]] = definitions.paged_attention
    rope_kv_write: Callable[[Tensor, Angles, Norms | None, LayerKv, Place], None] = definitions.rope_kv_write
    rms_norm: Callable[[Tensor, Tensor, float, bool], Tensor] = definitions.rms_norm
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, tuple[float, bool]], Tensor] = definitions.add_rms_norm
    act_mul: Callable[[Tensor, Activation], Tensor] = definitions.act_mul
    quant_linear: Callable[[Tensor, QuantMatrix, Tensor | None], Tensor] = definitions.quant_linear
    fixed_linear: Callable[[Tensor, Tensor | QuantMatrix, Tensor | None], Tensor] = definitions.fixed_linear
    dequantize: Callable[[QuantMatrix, torch.dtype, Tensor | None], Tensor] = definitions.dequantize
    experts: Callable[[Tensor, Tensor, Stacks, ExpertSettings, Tensor | None], Tensor] = definitions.experts
    lora: Callable[[Tensor, Tensor, LoraPlaces, StepRows], None] = definitions.lora
    sample: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] = definitions.sample
    prepare: Callable[[Tensor, Tensor, StepRows], None] = definitions.prepare
    append: Callable[[Tensor, Tensor, Tensor, Tensor], None] = definitions.append
    copy_frames: Callable[[Tensor, int, int, Tensor], None] = definitions.copy_frames
    zero_frames: Callable[[Tensor, int, int, Tensor], None] = definitions.zero_frames
    clear_tails: Callable[[Tensor, int, KvShape, int, Tensor], None] = definitions.clear_tails


DEFINITIONS = KernelTable()


def kernels() -> KernelTable:
    """The kernels; Triton is imported, and builds each of them when it is launched first."""
    from drivers.triton import attention, experts, fixed, linears, lora, pages, rope, rowwise, sampling, slots

    return KernelTable(
        paged_attention=attention.paged_attention,
        rope_kv_write=rope.rope_kv_write,
        rms_norm=rowwise.rms_norm,
        add_rms_norm=rowwise.add_rms_norm,
        act_mul=rowwise.act_mul,
        quant_linear=linears.quant_linear,
        fixed_linear=fixed.fixed_linear,
        dequantize=linears.dequantize,
        experts=experts.experts,
        lora=lora.lora,
        sample=sampling.sample,
        prepare=slots.prepare,
        append=slots.append,
        copy_frames=pages.copy_frames,
        zero_frames=pages.zero_frames,
        clear_tails=pages.clear_tails,
    )
