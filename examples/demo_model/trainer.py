"""A training run: takes steps, measures, keeps checkpoints, and goes on where an earlier run was cut off."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from examples.demo_model.checkpoint import Checkpoint, CurvePoint, load_checkpoint, save_checkpoint
from examples.demo_model.model import Llama
from examples.demo_model.optimizer import OptimizerPair, Rates, clip_gradients
from examples.demo_model.schedule import Budget, context_at, next_progress
from examples.demo_model.stream import ROW_TOKENS, TokenStream

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class TrainerConfig:
    """How a run is paced."""

    budget: Budget
    checkpoint_path: Path
    rates: Rates = dataclasses.field(default_factory=Rates)
    checkpoint_every_s: float = 120.0
    evaluate_every_steps: int = 200
    curve_every_steps: int = 10
    is_compiled: bool = True
    """Compiled steps are twice as fast, but need a C++ compiler and a minute at the start."""


class Trainer:
    """Owns the model, the optimizer and the counters of one run."""

    def __init__(self, model: Llama, stream: TokenStream, config: TrainerConfig, evaluate: Callable[[Llama], float]) -> None:
        self.model = model
        self.stream = stream
        self.config = config
        self.optimizer = OptimizerPair(model, config.rates)
        self.evaluate = evaluate
        self.step = 0
        self.elapsed_s = 0.0
        self.progress = 0.0
        self.curve: list[CurvePoint] = []
        self._loss: LossFunction = torch.compile(model.loss, dynamic=False) if config.is_compiled else model.loss

    def resume(self) -> bool:
        """Takes up the checkpoint on disk, and returns whether there was one."""
        checkpoint = load_checkpoint(self.config.checkpoint_path)
        if checkpoint is None:
            return False
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state(checkpoint.optimizer)
        self.step, self.elapsed_s, self.progress = checkpoint.step, checkpoint.elapsed_s, checkpoint.progress
        self.curve = list(checkpoint.curve)
        return True

    def save(self) -> None:
        """Makes the present state the one that `resume` takes up."""
        checkpoint = Checkpoint(
            step=self.step,
            elapsed_s=self.elapsed_s,
            progress=self.progress,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state(),
            curve=self.curve,
        )
        save_checkpoint(checkpoint, self.config.checkpoint_path)

    def run(self) -> Iterator[CurvePoint]:
        """Takes steps until the budget is used up and yields each point of the loss curve as it is measured."""
        last_save_s = self.elapsed_s
        recent: list[float] = []
        while self.progress < 1.0:
            recent.append(self._timed(self._take_step))
            if self.step % self.config.curve_every_steps == 0 or self.progress >= 1.0:
                yield self._add_point(sum(recent) / len(recent))
                recent.clear()
            if self.elapsed_s - last_save_s >= self.config.checkpoint_every_s:
                self.save()
                last_save_s = self.elapsed_s
        self.save()

    def _timed(self, work: Callable[[], float]) -> float:
        """Does `work` on the run's clock; only work counts, so a pause between two runs costs no schedule."""
        start_s = time.monotonic()
        value = work()
        self.elapsed_s += time.monotonic() - start_s
        self.progress = next_progress(self.config.budget, self.progress, self.step, self.elapsed_s)
        return value

    def _take_step(self) -> float:
        """Trains on the next batch and returns its loss in nats per token."""
        inputs, targets = self.stream.batch(self.step, min(context_at(self.progress), ROW_TOKENS))
        loss = self._loss(inputs, targets)
        # torch leaves `Tensor.backward` untyped
        torch.autograd.backward(loss)
        clip_gradients(self.model)
        self.optimizer.step(self.progress)
        self.step += 1
        return loss.item()

    def _add_point(self, nats_per_token: float) -> CurvePoint:
        """Appends a point to the loss curve, with a held-out figure when one is due, and returns it."""
        is_due = self.step % self.config.evaluate_every_steps == 0
        held_out = self._timed(lambda: self.evaluate(self.model)) if is_due else None
        point = CurvePoint(self.step, nats_per_token / math.log(2) / self.stream.bytes_per_token, held_out)
        self.curve.append(point)
        return point
