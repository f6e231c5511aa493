"""Readings: what the machine's gauges show at one moment, for whoever scrapes the metrics."""

from __future__ import annotations

from kerneld.gauges import FairGauges, Gauges, StepGauges
from kerneld.machine import Machine
from memory.page import Tier


def gauges_of(machine: Machine) -> Gauges:
    """Read every gauge of a machine."""
    tiers = machine.pager.ledger.snapshot()
    device = next(tier for tier in tiers if tier.tier is Tier.DEVICE)
    kv_bytes = sum(device.kv_bytes.values())
    return Gauges(
        running=machine.scheduler.running.total,
        waiting=machine.scheduler.waiting.total,
        contexts=len(machine.contexts),
        kv_usage=kv_bytes / max(1, kv_bytes + device.free_bytes),
        fair=_fair_gauges(machine),
        tier_bytes={
            (tier.tier.name.lower(), kind): size
            for tier in tiers
            for kind, size in (("weights", tier.weights_bytes), ("kv", sum(tier.kv_bytes.values())), ("free", tier.free_bytes))
        },
    )


def _fair_gauges(machine: Machine) -> FairGauges:
    scheduler = machine.scheduler
    tariffs, costs = scheduler.charging.tariffs, scheduler.sizer.costs
    fits = dict(costs)
    names = [model.name for model in machine.models if model.is_resident]
    errors = {name: fits[name].error if name in fits and fits[name].is_measured else None for name in names}
    shares, starts = machine.starts.map(0.0), machine.starts
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
        estimate_error=starts.estimator.error,
        num_estimates=starts.estimator.num_judged,
        models={name: StepGauges(tariffs.get(name), errors[name]) for name in names},
    )
