"""The resumable state of a training run on disk."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of the loss curve; the held-out figure is None where it was not measured."""

    step: int
    train_bits_per_byte: float
    held_out_bits_per_byte: float | None


@dataclasses.dataclass(slots=True)
class Checkpoint:
    """All that a run needs to go on: `step` steps are done, in `elapsed_s` seconds of work."""

    step: int
    elapsed_s: float
    progress: float
    """Schedule position in `[0, 1]`; kept, because it may be ahead of the step count when time runs short."""
    model: dict[str, Tensor]
    optimizer: list[dict[str, Any]]
    curve: list[CurvePoint]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes `checkpoint` to `path`; a kill at any moment leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    fields["curve"] = [dataclasses.astuple(point) for point in checkpoint.curve]
    with temporary.open("wb") as file:
        torch.save(fields, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Returns the checkpoint at `path`, or None where there is none yet."""
    if not path.exists():
        return None
    fields = torch.load(path, weights_only=True)
    fields["curve"] = [CurvePoint(*point) for point in fields["curve"]]
    return Checkpoint(**fields)
