"""Activities: what tenants do just now, for `top`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kerneld.holdings import TenantActivity
from kerneld.machine import Machine
from kerneld.state.tables import TenantRow
from memory.page import Tier


def activities_of(machine: Machine, tenants: Iterable[TenantRow]) -> Iterator[TenantActivity]:
    """Those of the tenants that do anything: run or wait, have contexts, or were served of late; the busiest first."""
    shares, scheduler = machine.starts.map(), machine.scheduler
    recent_us, _seconds = machine.starts.window.recent_us()
    total_us = sum(max(us, 0) for path, us in recent_us.items() if "/" not in path)
    owed_us = shares.lags_us()
    found: list[TenantActivity] = []
    for row in tenants:
        node, served_us = shares.nodes.get(row.path), recent_us.get(row.path, 0)
        activity = TenantActivity(
            tenant=row.path,
            weight=row.weight,
            factor_milli=node.factor_milli if node is not None else 1000,
            recent_us=served_us,
            recent_share=max(served_us, 0) / total_us if total_us else 0.0,
            owed_us=round(owed_us.get(row.path, 0.0)),
            num_waiting=scheduler.waiting.of(row.path),
            num_running=scheduler.running.of(row.path),
            num_contexts=machine.contexts.count_below(row.path),
            kv_device_bytes=machine.devices.used(row.path, Tier.DEVICE),
        )
        if served_us or activity.num_waiting or activity.num_running or activity.num_contexts:
            found.append(activity)
    yield from sorted(found, key=lambda each: (-each.recent_us, -each.num_waiting - each.num_running, each.tenant))
