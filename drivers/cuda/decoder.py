"""A decoder on the device: its calls, its weights and its pages, run over the rows of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drivers.cuda.ops import RUNS, CudaPass, Parts, StepAdapters
from drivers.ops.fusion import Choice, Cover
from drivers.triton.layout import Angles, Heads, LayerKv, StepRows
from drivers.triton.table import KernelTable


@dataclass(frozen=True, slots=True)
class CudaDecoder:
    """Frozen: a load makes one."""

    cover: Cover
    segments: tuple[Parts, ...]  # embedding, layers, end
    kv: tuple[LayerKv, ...]  # of each layer
    windows: tuple[int, ...]  # of each KV group; 0: none
    heads: Heads
    angles: tuple[Angles, ...]
    still: Angles
    dtype: torch.dtype
    kernels: KernelTable

    @property
    def has_experts(self) -> bool:
        """Whether some layer is a mixture."""
        return any(choice.call.op == "experts" for choices in self.cover.lists for choice in choices)

    def forward(self, step: StepRows, adapters: StepAdapters | None = None) -> Tensor:
        """Compute the step's tokens and write their keys and values; answers the last hidden states `[T, hidden]`, not normed."""
        return self.run_layers(self.first(step), step, range(len(self.kv)), adapters)

    def first(self, step: StepRows) -> Tensor:
        """The hidden states before the first layer."""
        found = self._pass({"tokens": step.tokens, "positions": step.positions}, step)
        run_calls(self.cover.lists[0], self.segments[0], found)
        return found.values["residual"]

    def run_layers(self, hidden: Tensor, step: StepRows, layers: range, adapters: StepAdapters | None = None) -> Tensor:
        """Compute these layers, from the hidden states before them to those behind; the weights of others need not be here."""
        found = self._pass({"tokens": step.tokens, "positions": step.positions, "residual": hidden}, step)
        found.adapters = adapters
        for found.layer in layers:
            run_calls(self.cover.lists[1 + found.layer], self.segments[1 + found.layer], found)
        return found.values["residual"]

    def logits(self, hidden: Tensor, step: StepRows) -> Tensor:
        """Logits `[n, vocab]` of hidden states `[n, hidden]`."""
        found = self._pass({"residual": hidden}, step)
        run_calls(self.cover.lists[-1], {**self.segments[0], **self.segments[-1]}, found)
        return found.values["logits"]

    def _pass(self, values: dict[str, Tensor], step: StepRows) -> CudaPass:
        return CudaPass(values, step, self.kernels, self.dtype, self.heads, self.kv, self.windows, self.angles, self.still)


def run_calls(choices: Sequence[Choice], parts: Parts, step: CudaPass) -> None:
    """Run one list of calls."""
    for choice in choices:
        RUNS[choice.call.op](choice.call, parts, step)
