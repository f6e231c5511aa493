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
    fixed_chunk: int = 0  # see `CudaPass`
    borders: tuple[Choice | None, ...] = ()  # see `drivers.ops.fusion.borders`

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
        self._run(found, layers, layers.stop)
        return found.values["residual"]

    def all_logits(self, step: StepRows, adapters: StepAdapters | None = None) -> Tensor:
        """Compute a step's tokens; answers the logits `[T, vocab]` of all of them."""
        found, end = self._pass({"tokens": step.tokens, "positions": step.positions, "residual": self.first(step)}, step), len(self.kv)
        found.adapters = adapters
        self._run(found, range(end), end + 1)
        found.layer = -1
        self._run_list(end + 1, {**self.segments[0], **self.segments[-1]}, found, (end, end + 2))
        return found.values["logits"]

    def logits(self, hidden: Tensor, step: StepRows) -> Tensor:
        """Logits `[n, vocab]` of hidden states `[n, hidden]`."""
        found = self._pass({"residual": hidden}, step)
        run_calls(self.cover.lists[-1], {**self.segments[0], **self.segments[-1]}, found)
        return found.values["logits"]

    def _run(self, found: CudaPass, layers: range, end: int) -> None:
        """Layers one behind the other; what comes behind them, up to `end`, goes on where they stop."""
        for found.layer in layers:
            self._run_list(1 + found.layer, self.segments[1 + found.layer], found, (1 + layers.start, 1 + end))

    def _run_list(self, idx: int, parts: Parts, found: CudaPass, lists: tuple[int, int]) -> None:
        """One list of calls, of the run of lists [first, end): its first call may do what the last of the list before it has left over."""
        first, end = lists
        entry = self.borders[idx - 1] if self.borders and idx > first else None
        leaves = bool(self.borders) and idx + 1 < end and self.borders[idx] is not None
        choices = self.cover.lists[idx]
        if entry is not None:
            run_calls((entry,), parts, found)
        run_calls(choices[entry is not None : len(choices) - leaves], parts, found)

    def _pass(self, values: dict[str, Tensor], step: StepRows) -> CudaPass:
        return CudaPass(
            values, step, self.kernels, self.dtype, self.heads, self.kv, self.windows, self.angles, self.still, self.fixed_chunk
        )


def run_calls(choices: Sequence[Choice], parts: Parts, step: CudaPass) -> None:
    """Run one list of calls."""
    for choice in choices:
        RUNS[choice.call.op](choice.call, parts, step)
