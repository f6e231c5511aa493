"""Readings: what the machine's gauges show at one moment, for whoever scrapes the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from kerneld.context import priced_as
from kerneld.deviceparts import DeviceParts
from kerneld.gauges import DeviceGauges, FairGauges, Gauges, StepGauges
from kerneld.machine import Machine
from memory.ledger import TierSnapshot
from memory.page import Tier


def gauges_of(machine: Machine) -> Gauges:
    """Read every gauge of a machine."""
    tiers = {device.label: device.pager.ledger.snapshot() for device in machine.devices}
    on_devices = [tier for each in tiers.values() for tier in each if tier.tier is Tier.DEVICE]
    kv_bytes = sum(sum(tier.kv_bytes.values()) for tier in on_devices)
    tier_bytes = Counter[tuple[str, str]]()
    for each in tiers.values():
        tier_bytes.update(_by_kind(each))
    return Gauges(
        running=machine.scheduler.running.total,
        waiting=machine.scheduler.waiting.total,
        contexts=len(machine.contexts),
        kv_usage=kv_bytes / max(1, kv_bytes + sum(tier.free_bytes for tier in on_devices)),
        quarantined={device.name: len(_quarantined(device)) for device in machine.devices},
        fair=_fair_gauges(machine),
        tier_bytes=tier_bytes,
        devices={device.label: _device_gauges(device, _by_kind(tiers[device.label])) for device in machine.devices if device.label},
    )


def _quarantined(device: DeviceParts) -> set[str]:
    """Implementations that models on a device would have run, had they agreed with their definitions."""
    return {op.implementation for model in device.models if model.is_resident for op in model.ops if op.is_quarantined}


def _by_kind(tiers: Iterable[TierSnapshot]) -> dict[tuple[str, str], int]:
    """Bytes of tiers by what they hold."""
    return {
        (tier.tier.name.lower(), kind): size
        for tier in tiers
        for kind, size in (("weights", tier.weights_bytes), ("kv", sum(tier.kv_bytes.values())), ("free", tier.free_bytes))
    }


def _device_gauges(device: DeviceParts, tier_bytes: dict[tuple[str, str], int]) -> DeviceGauges:
    scheduler = device.scheduler
    return DeviceGauges(device.is_running, scheduler.running.total, scheduler.waiting.total, device.throughput.rates()[2], tier_bytes)


def _fair_gauges(machine: Machine) -> FairGauges:
    scheduler = machine.scheduler
    tariffs, fits = scheduler.charging.tariffs, dict(scheduler.costs)
    names = [priced_as(model.name, device.label) for device in machine.devices for model in device.models if model.is_resident]
    errors = {name: fits[name].error if name in fits and fits[name].is_measured else None for name in names}
    shares, starts = machine.starts.map(0.0), machine.starts
    estimators = [device.starts.estimator for device in machine.devices]
    judged = max(estimators, key=lambda each: each.num_judged)
    tenants = {path: node for path, node in shares.nodes.items() if path in machine.tenants}
    lags_us = shares.lags_us()
    return FairGauges(
        service_us={path: node.service_us for path, node in tenants.items()},
        lag_us={path: lags_us[path] for path in tenants if path in lags_us},
        factor_milli={path: node.factor_milli for path, node in tenants.items()},
        jain=starts.window.jain(),
        deferred=scheduler.num_deferred,
        step_tokens=scheduler.step_budget,
        system_us=scheduler.system_us,
        estimate_error=judged.error,
        num_estimates=sum(each.num_judged for each in estimators),
        models={name: StepGauges(tariffs.get(name), errors[name]) for name in names},
    )
