"""Reading: from a TOML file to a workload. Every error names the file, the key, what was given and what is accepted.

    duration_s = 600                          name = "..."  seed = 1
    [device]                                  step_s, token_s, row_s, context_s, or costs = "steps.json"; pages ... (DeviceSpec)
    [scheduler]                               the numbers of `SchedulerPolicy`; input_ns ... of a tariff; max_queued
    [[tenant]]                                path, weight, limits = {...}, class, nice, deadline_s, max_tokens
    rate = 1.5                                requests per second, with arrival = "constant", "poisson", or "onoff" with on_s and off_s;
    [[tenant.phase]]                          or one after another until `until_s`; or arrival = "trace" with times = [...]
    input = 256                               or {low, high}, or {mean, sigma, most} of a lognormal; output the same
    [replay] file = "events.jsonl"            requests from a daemon's event log; tenants may be given beside it

A tenant's parent is named by its path, so there are no cycles to be found; it has to be listed too.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from drivers.sim import StepCostsInvalid, StepModel
from kerneld.calls import Limits, Priority
from kerneld.fairshare import MAX_WEIGHT
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.tariff import Tariff
from kerneld.simulation.replay import Replay
from kerneld.simulation.tomltable import TomlTable
from kerneld.simulation.workload import (
    ENDLESS,
    MOST_REQUESTS,
    PAPER_TARIFF,
    Arrival,
    DeviceSpec,
    Fixed,
    Lengths,
    Lognormal,
    Phase,
    SchedulerSpec,
    TenantLoad,
    Uniform,
    Workload,
    WorkloadInvalid,
)

TRACE = "trace"
_PACES = ("step_s", "token_s", "row_s", "context_s")


def read_workload(path: Path) -> Workload:
    """The workload of a TOML file. Raises: WorkloadInvalid."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkloadInvalid(f"{path}: cannot read the workload: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WorkloadInvalid(f"{path}: not TOML: {error}.") from error
    return _workload(TomlTable(str(path), values), path)


def _workload(table: TomlTable, path: Path) -> Workload:
    device = _device(table.table("device"), path.parent)
    scheduler = _scheduler(table.table("scheduler"))
    tenants = tuple(_tenant(entry, device) for entry in table.tables("tenant", "path"))
    replay = _replay(table.table("replay"), path.parent)
    name, seed = table.text("name", path.stem), table.whole("seed", 1)
    duration_s = table.number("duration_s", replay.duration_s if replay else None, is_above=True)
    table.finish()
    if replay is not None:
        if any(tenant.is_sending for tenant in tenants):
            raise WorkloadInvalid(f"{path}: with [replay], requests come from its file: a tenant has neither rate nor times.")
        tenants = replay.tenants(tenants)
    _check_tree(path, tenants)
    _check_count(path, tenants, duration_s)
    workload = Workload(name, duration_s, tenants, seed, device, scheduler, replay.jobs if replay else ())
    if not workload.senders:
        raise WorkloadInvalid(f"{path}: no tenant sends anything: give one a rate.")
    return workload


def _replay(table: TomlTable | None, folder: Path) -> Replay | None:
    if table is None:
        return None
    file = folder / table.text("file")
    table.finish()
    return Replay.read(file)


# --------------------------------------------------------------------------------------------------------------- device and scheduler


def _device(table: TomlTable | None, folder: Path) -> DeviceSpec:
    default = DeviceSpec()
    if table is None:
        return default
    device = DeviceSpec(
        costs=_costs(table, folder, default.costs),
        pages=table.whole("pages", default.pages, least=1),
        page_tokens=table.whole("page_tokens", default.page_tokens, least=1, most=256),
        page_bytes=table.whole("page_bytes", default.page_bytes, least=4096),
        host_pages=table.whole("host_pages", default.host_pages),
        copy_bytes_per_s=table.number("copy_bytes_per_s", default.copy_bytes_per_s, is_above=True),
        max_rows=table.whole("max_rows", default.max_rows, least=1, most=1024),
        max_step_tokens=table.whole("max_step_tokens", default.max_step_tokens, least=1, most=65536),
        context_tokens=table.whole("context_tokens", default.context_tokens, least=1),
    )
    table.finish()
    if device.page_bytes % 4096:
        raise table.error("page_bytes", "a multiple of 4096")
    if device.max_step_tokens < device.max_rows:
        raise table.error("max_step_tokens", f"at least a token for each of the {device.max_rows} rows (max_rows)")
    return device


def _costs(table: TomlTable, folder: Path, default: StepModel) -> StepModel:
    given = [name for name in _PACES if table.has(name)]
    if table.has("costs"):
        if given:
            raise table.error("costs", f"either a file of step costs or {given[0]} here, not both")
        try:
            return StepModel.read(folder / table.text("costs"))
        except (OSError, StepCostsInvalid) as error:
            raise WorkloadInvalid(f"{table.where}: costs: {error}") from error
    if not given:
        return default
    try:
        return StepModel(table.number("step_s"), table.number("token_s"), table.number("row_s", 0.0), table.number("context_s", 0.0))
    except StepCostsInvalid as error:
        raise WorkloadInvalid(f"{table.where}: {error}") from error


def _scheduler(table: TomlTable | None) -> SchedulerSpec:
    if table is None:
        return SchedulerSpec(SchedulerPolicy())
    numbers: dict[str, Any] = {}
    for item in dataclasses.fields(SchedulerPolicy):
        if item.name != "max_step_tokens" and table.has(item.name):  # that one is the device's
            numbers[item.name] = table.number(item.name) if isinstance(item.default, float) else table.whole(item.name)
    prices = {name: table.whole(name, getattr(PAPER_TARIFF, name)) for name in Tariff.__struct_fields__}
    max_queued = table.whole("max_queued", SchedulerSpec(SchedulerPolicy()).max_queued, least=1)
    table.finish()
    return SchedulerSpec(SchedulerPolicy(**numbers), Tariff(**prices), max_queued)


# ----------------------------------------------------------------------------------------------------------------------------- tenants


def _tenant(table: TomlTable, device: DeviceSpec) -> TenantLoad:
    is_trace = table.raw("arrival") == TRACE
    load = TenantLoad(
        path=table.text("path"),
        weight=table.whole("weight", 1, least=1, most=MAX_WEIGHT),
        limits=_limits(table.table("limits")),
        phases=() if is_trace else _phases(table),
        trace=table.numbers("times") if is_trace else (),
        input=_lengths(table, "input"),
        output=_lengths(table, "output"),
        max_tokens=table.whole("max_tokens", 0),
        priority=table.choice("class", Priority, Priority.INTERACTIVE),
        nice=table.whole("nice", 0, least=-20, most=19),
        deadline_s=table.number("deadline_s", 0.0),
    )
    table.finish()
    if load.is_sending:
        _check_fits(table.where, load, device)
    return load


def _check_fits(where: str, load: TenantLoad, device: DeviceSpec) -> None:
    """Whether the longest request of a tenant could run alone. Raises: WorkloadInvalid."""
    num_input, num_output = load.input.most, max(load.output.most, load.max_tokens)
    rooms = {"device.pages * device.page_tokens": device.pool_tokens, "device.context_tokens": device.context_tokens}
    for room, tokens in rooms.items():
        if num_input + num_output > tokens:
            problem = f"input and output may have {num_input} + {num_output} tokens, {room} is {tokens}"
            raise WorkloadInvalid(f"{where}: {problem}: such a request could never run.")


def _limits(table: TomlTable | None) -> Limits:
    if table is None:
        return Limits()
    known = [item.name for item in dataclasses.fields(Limits) if isinstance(item.default, int)]
    given: dict[str, Any] = {name: table.whole(name) for name in known if table.has(name)}
    table.finish()
    return Limits(**given)


def _phases(table: TomlTable) -> tuple[Phase, ...]:
    phases = table.tables("phase")
    if not phases:
        return (_phase(table, ENDLESS),) if table.has("rate") else ()
    if table.has("rate"):
        raise table.error("rate", "a rate here or in [[tenant.phase]], not both")
    read: list[Phase] = []
    for number, entry in enumerate(phases, 1):
        begin = read[-1].until_s if read else 0.0
        is_last = number == len(phases)
        read.append(_phase(entry, entry.number("until_s", ENDLESS if is_last else None, least=begin, is_above=True)))
        entry.finish()
    return tuple(read)


def _phase(table: TomlTable, until_s: float) -> Phase:
    arrival = table.choice("arrival", Arrival, Arrival.CONSTANT)
    is_on_off = arrival is Arrival.ONOFF or table.has("on_s")
    return Phase(
        rate=table.number("rate"),
        arrival=arrival,
        until_s=until_s,
        on_s=table.number("on_s", is_above=True) if is_on_off else 0.0,
        off_s=table.number("off_s") if is_on_off else 0.0,
    )


def _lengths(table: TomlTable, key: str) -> Lengths:
    given = table.raw(key)
    if not isinstance(given, dict):
        return Fixed(table.whole(key, 256, least=1))
    inner = table.table(key)
    assert inner is not None, "it is given"
    lengths: Lengths
    if inner.has("mean"):
        lengths = Lognormal(inner.number("mean", least=1), inner.number("sigma"), inner.whole("most", least=1))
    else:
        low = inner.whole("low", least=1)
        lengths = Uniform(low, inner.whole("high", least=low))
    inner.finish()
    return lengths


def _check_tree(path: Path, tenants: Sequence[TenantLoad]) -> None:
    """Every tenant once, below tenants that are there. Raises: WorkloadInvalid."""
    known: set[str] = set()
    for tenant in tenants:
        if tenant.path in known:
            raise WorkloadInvalid(f"{path}: tenant {tenant.path!r} is there twice.")
        if not all(name and name != "." for name in tenant.path.split("/")):
            raise WorkloadInvalid(f"{path}: tenant path {tenant.path!r}: names are not empty and not '.'.")
        known.add(tenant.path)
    for missing in _missing_parents(known):
        raise WorkloadInvalid(f"{path}: tenants are below {missing!r}, which is no tenant: add a [[tenant]] with that path.")


def _check_count(path: Path, tenants: Sequence[TenantLoad], duration_s: float) -> None:
    """Whether no more requests are to be expected than can be drawn. Raises: WorkloadInvalid, naming the tenant with most of them."""
    expected = {tenant.path: tenant.expected(duration_s) for tenant in tenants}
    total = sum(expected.values())
    if total > MOST_REQUESTS:
        most = max(expected, key=expected.__getitem__)
        problem = f"about {total:,.0f} requests would come in {duration_s:g} s, {expected[most]:,.0f} of them from it"
        raise WorkloadInvalid(f"{path}: tenant {most}: {problem}: at most {MOST_REQUESTS:,} are simulated; lower a rate or duration_s.")


def _missing_parents(known: Iterable[str]) -> list[str]:
    parents = {path.rpartition("/")[0] for path in known} - {""}
    return sorted(parents - set(known))
