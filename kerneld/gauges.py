"""What the metrics show of the machine at one moment, as the kernel reads it off (`kerneld.readings`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kerneld.pricing.tariff import Tariff


@dataclass(frozen=True, slots=True)
class StepGauges:
    """What is known of one model's steps."""

    tariff: Tariff
    error: float | None = None  # of the last steps, in proportion to what was expected; None: none was measured


@dataclass(frozen=True, slots=True)
class FairGauges:
    """Who was served how much, and what the scheduler goes by. Tenants by path, times in microseconds of device time."""

    service_us: Mapping[str, int] = field(default_factory=dict)
    lag_us: Mapping[str, float] = field(default_factory=dict)  # of tenants with something to run: what each is owed by its siblings
    factor_milli: Mapping[str, int] = field(default_factory=dict)  # by which weights are multiplied
    system_us: Mapping[str, int] = field(default_factory=dict)  # by cause: what nobody asked for, and no tenant pays
    jain: float = 1.0
    deferred: int = 0
    step_tokens: int = 0  # that the last step was allowed
    estimate_error: float | None = None
    num_estimates: int = 0  # that the error is of
    models: Mapping[str, StepGauges] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceGauges:
    """One of several devices."""

    is_running: bool
    running: int
    waiting: int
    busy: float  # part of the last seconds in which it computed
    tier_bytes: Mapping[tuple[str, str], int]  # by (tier, kind)


@dataclass(frozen=True, slots=True)
class Gauges:
    """The machine at one moment."""

    running: int = 0
    waiting: int = 0
    contexts: int = 0
    kv_usage: float = 0.0  # 0 to 1
    tier_bytes: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by (tier, kind)
    quarantined: Mapping[str, int] = field(default_factory=dict)  # by device: implementations of ops that disagreed with their definitions
    fair: FairGauges = field(default_factory=FairGauges)
    devices: Mapping[str, DeviceGauges] = field(default_factory=dict)  # by name, where there are several
