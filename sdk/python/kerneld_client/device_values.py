"""What the daemon says of devices. Frozen; sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpReport:
    """What runs one op of a model."""

    op: str
    implementation: str
    covers: tuple[str, ...]  # the primitive ops that it stands for
    num_calls: int  # in one forward pass
    why: str
    is_quarantined: bool  # it disagreed with its definition, so it does not run


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A loaded model."""

    model: str
    runs_on: str  # what computes it, and why nothing better does
    ops: tuple[OpReport, ...]
    quant: str = ""  # empty: its weights are not quantized
    kv_quant: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """A device, and what runs the models on it. What its driver says is empty while no worker is there."""

    name: str
    state: str
    driver: str
    version: str
    device_name: str
    memory_bytes: int
    dtypes: tuple[str, ...]
    quantizations: tuple[str, ...]
    isa: str  # the best that native code can be compiled for there
    is_batch_invariant: bool
    models: tuple[DeviceModel, ...]
    problem: str = ""  # why its worker is not there, as far as is known
    arena_bytes: int = 0  # of its memory, what weights and pages may have
