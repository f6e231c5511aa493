"""What `top` shows: the machine at one moment, as one caller may see it."""

from __future__ import annotations

from kerneld.activities import activities_of
from kerneld.calls import Caller, TenantInfo, TierUse, TopFrame, WorkerStatus
from kerneld.deviceparts import DeviceParts
from kerneld.machine import Machine
from kerneld.security.acl import may_see_everything, may_see_tenant
from kerneld.state.tables import TenantRow
from kerneld.tenants import revision_of
from memory.page import Tier


def frame_of(machine: Machine, caller: Caller) -> TopFrame:
    """One frame."""
    now = machine.clock()
    rates = [device.throughput.rates() for device in machine.devices]
    visible = [row for row in machine.tenants if may_see_tenant(caller.principal, row.path)]
    everything = may_see_everything(caller.principal)
    names = {device.name: device.shown_name for device in machine.devices}
    return TopFrame(
        at=now,
        uptime_s=now - machine.started_at,
        running=machine.scheduler.running.total,
        waiting=machine.scheduler.waiting.total,
        num_contexts=len(machine.contexts),
        tokens_per_s=sum(output for _prefill, output, _busy in rates),
        prefill_tokens_per_s=sum(prefill for prefill, _output, _busy in rates),
        tiers=tuple(use for device in machine.devices for use in _tiers(device, {row.path for row in visible}, everything)),
        tenants=tuple(tenant_info(machine, row) for row in visible),
        workers=tuple(_worker_status(device, everything) for device in machine.devices),
        models=tuple(model.info(names) for model in machine.models),
        boot_generation=machine.boot_generation,
        activities=tuple(activities_of(machine, visible)),
        recent_s=machine.starts.window.recent_us()[1],
        jain=machine.starts.window.jain(),
    )


def tenant_info(machine: Machine, row: TenantRow) -> TenantInfo:
    """A tenant as it stands; its bytes are those of all devices."""
    used = machine.usage.accounts.totals(row.path)
    devices = machine.devices
    return TenantInfo(
        path=row.path,
        weight=row.weight,
        limits=row.limits,
        created_at=row.created_at,
        num_contexts=machine.contexts.count_below(row.path),
        num_running=machine.scheduler.running.of(row.path),
        num_queued=machine.scheduler.waiting.of(row.path),
        service=machine.scheduler.shares.service(row.path),
        kv_device_bytes=devices.used(row.path, Tier.DEVICE),
        kv_host_bytes=devices.used(row.path, Tier.HOST),
        input_tokens=used.input_tokens,
        output_tokens=used.output_tokens,
        kv_disk_bytes=devices.used(row.path, Tier.DISK),
        revision=revision_of(row),
    )


def _tiers(device: DeviceParts, visible: set[str], everything: bool) -> list[TierUse]:
    tiers = []
    for snapshot in device.pager.ledger.snapshot():
        kv: dict[str, int] = {}
        for owner, size in snapshot.kv_bytes.items():
            name = owner if everything or owner in visible else "others"
            kv[name] = kv.get(name, 0) + size
        tier, sizes = snapshot.tier.name.lower(), (snapshot.total_bytes, snapshot.free_bytes, snapshot.weights_bytes)
        tiers.append(TierUse(tier, *sizes, kv, device.label))
    return tiers


def _worker_status(device: DeviceParts, everything: bool) -> WorkerStatus:
    supervisor, busy = device.supervisor, device.throughput.rates()[2]
    pid = supervisor.pid if everything else 0
    return WorkerStatus(device.name, device.config.drivers.use, pid, supervisor.state.value, supervisor.restarts, busy)
