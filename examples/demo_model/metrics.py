"""The figures of a run, as `metrics.json` keeps them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Metrics:
    """What was trained, on what, for how long, and how well it does on files it never saw."""

    is_final: bool
    """False while the weights come from a checkpoint of a run that still goes on."""
    num_parameters: int
    num_steps: int
    num_tokens_seen: int
    train_minutes: float
    python_version: str
    num_train_files: int
    num_train_bytes: int
    num_train_tokens: int
    num_held_out_files: int
    num_held_out_bytes: int
    held_out_bits_per_byte: float
    held_out_library_bits_per_byte: float
    """Of the held-out files outside the test suites."""
    held_out_tests_bits_per_byte: float
    """Of the held-out files of the test suites."""
    held_out_median_bits_per_byte: float
    """Of the file in the middle; a few long test files weigh most in the mean."""
    held_out_xz_bits_per_byte: float
    """What `xz -9` needs for the same files, each alone: the yardstick that knows no Python."""


def write_metrics(metrics: Metrics, path: Path) -> None:
    """Writes `metrics` as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(metrics), indent=2) + "\n", "utf-8")


def read_metrics(path: Path) -> Metrics:
    """Returns the metrics that `write_metrics` wrote to `path`."""
    return Metrics(**json.loads(path.read_text("utf-8")))
