"""The optimizer and its schedule: Muon for the matrices, AdamW for the embedding and the norms."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

from examples.demo_model.model import Llama


@dataclasses.dataclass(frozen=True, slots=True)
class Rates:
    """Peak learning rates and the form of the schedule."""

    matrix_rate: float = 4e-3
    embedding_rate: float = 1.5e-2
    matrix_weight_decay: float = 0.1
    warm_up: float = 0.01
    """Share of the run in which the rate rises; afterwards it falls on a straight line to zero."""


def rate_factor(progress: float, warm_up: float) -> float:
    """Returns the part of the peak rate to use at `progress` in `[0, 1]` of the run."""
    if progress < warm_up:
        return max(progress / warm_up, 0.05)
    return max(0.0, (1.0 - progress) / (1.0 - warm_up))


class OptimizerPair:
    """Muon and AdamW, stepped and saved as one."""

    def __init__(self, model: Llama, rates: Rates) -> None:
        parameters = dict(model.named_parameters())
        matrices = [p for name, p in parameters.items() if p.ndim == 2 and "embed_tokens" not in name]
        others = [p for name, p in parameters.items() if p.ndim != 2 or "embed_tokens" in name]
        # `match_rms_adamw` scales the update of each matrix to the size that AdamW's would have.
        muon = Muon(matrices, lr=rates.matrix_rate, weight_decay=rates.matrix_weight_decay, adjust_lr_fn="match_rms_adamw")
        adamw = AdamW(others, lr=rates.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.rates = rates
        self._optimizers: tuple[Optimizer, ...] = (muon, adamw)
        self._peak_rates = (rates.matrix_rate, rates.embedding_rate)

    def step(self, progress: float) -> None:
        """Changes the parameters by their gradients at the rate that belongs to `progress`, and drops the gradients."""
        factor = rate_factor(progress, self.rates.warm_up)
        for optimizer, peak_rate in zip(self._optimizers, self._peak_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak_rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        """Returns the state of both for a checkpoint."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Takes back what `state` returned."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def clip_gradients(model: Llama, max_norm: float = 1.0) -> None:
    """Limits the norm of all gradients together; a bad batch must not throw the embedding off."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
