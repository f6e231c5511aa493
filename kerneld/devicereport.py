"""What a device is and what runs its models, as callers see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpLine:
    """What runs one op of a model."""

    op: str
    implementation: str
    covers: tuple[str, ...]  # the primitive ops that it stands for
    num_calls: int  # in one forward pass
    why: str
    is_quarantined: bool


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A loaded model."""

    model: str
    runs_on: str
    ops: tuple[OpLine, ...]
    quant: str = ""  # empty: its weights are not quantized
    kv_quant: str = ""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device. What its driver says is empty while no worker is there."""

    name: str
    state: str
    models: tuple[DeviceModel, ...] = ()
    driver: str = ""
    version: str = ""
    device_name: str = ""
    memory_bytes: int = 0
    dtypes: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    isa: str = ""
    is_batch_invariant: bool = False
    problem: str = ""  # why its worker is not there, as far as is known
    arena_bytes: int = 0
