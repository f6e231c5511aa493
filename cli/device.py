"""Devices: the group device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from cli.render import Column, bytes_text, table_of, word, write_line, write_note, write_table
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client.device_values import Device, DeviceModel
    from kerneld_client.values import TopFrame


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device, as a line shows it."""

    device: str
    driver: str
    state: str
    busy: float
    restarts: int
    pid: int
    memory_bytes: int
    free_bytes: int
    weights_bytes: int
    models: tuple[str, ...]


COLUMNS = (
    Column("NAME", lambda d: d.device),
    Column("DRIVER", lambda d: d.driver),
    Column("STATE", lambda d: word(d.state)),
    Column("BUSY", lambda d: f"{d.busy:.0%}", is_number=True),
    Column("MEMORY", lambda d: bytes_text(d.memory_bytes), is_number=True),
    Column("FREE", lambda d: bytes_text(d.free_bytes), is_number=True),
    Column("WEIGHTS", lambda d: bytes_text(d.weights_bytes), is_number=True),
    Column("MODELS", lambda d: ", ".join(d.models) or "-"),
    Column("RESTARTS", lambda d: str(d.restarts), is_wide=True, is_number=True),
    Column("PID", lambda d: str(d.pid or "-"), is_wide=True, is_number=True),
)


OP_COLUMNS = (
    Column("OP", lambda o: o.op),
    Column("RUNS AS", lambda o: f"{o.implementation} (quarantined)" if o.is_quarantined else o.implementation),
    Column("STANDS FOR", lambda o: " + ".join(o.covers) or "-"),
    Column("CALLS", lambda o: str(o.num_calls or "-"), is_number=True),
    Column("WHY", lambda o: o.why),
)


@click.group(short_help="List and show devices.")
def device() -> None:
    """List and show devices."""


@device.command("ls")
@output_option
@pass_shell
def list_command(shell: Shell) -> None:
    """List the devices of the daemon: what runs them, how full they are, and the models on them."""
    with shell.connect() as client:
        frame = client.top()
        troubles = [] if all(worker.state == "running" for worker in frame.workers) else problems_of(client.devices(""))
    shell.printer.rows(list(rows_of(frame)), COLUMNS, lambda row: str(row.device))
    for trouble in troubles:
        write_note(trouble)


@device.command("show")
@click.argument("name", required=False, default="")
@output_option
@pass_shell
def show_command(shell: Shell, name: str) -> None:
    """Show what a device is, and what runs each op of the models on it; all devices, if none is named."""
    with shell.connect() as client:
        devices = client.devices(name)
    if not shell.printer.is_for_people:
        shell.printer.rows(devices, (Column("NAME", lambda d: d.name),), lambda row: str(row.name))
        return
    for idx, one in enumerate(devices):
        if idx:
            write_line("")
        show_device(one)


def problems_of(devices: list[Device]) -> list[str]:
    """Why workers are not there, as far as is known."""
    return [f"{device.name}: {device.problem}" for device in devices if device.problem]


def show_device(device: Device) -> None:
    """One device for people: facts, then a table for each model."""
    facts = [f"{device.name}: {word(device.state)}"]
    if device.driver:
        facts[0] += f", {device.driver} driver, version {device.version}, on {device.device_name}"
        used = f"{bytes_text(device.arena_bytes)} for weights and pages (memory.device_bytes)"
        facts.append(f"memory {bytes_text(device.memory_bytes)}, of it {used}; computes in {', '.join(device.dtypes)}")
        facts.append(f"quantizes to {', '.join(device.quantizations)}" if device.quantizations else "does not quantize")
        facts.append(f"instructions {device.isa}" if device.isa else "no native code for this host")
    if device.problem:
        facts.append(f"its worker does not run: {device.problem}")
    for fact in facts:
        write_line(fact)
    for model in device.models:
        show_model(model)


def show_model(model: DeviceModel) -> None:
    """What runs a model, and each of its ops."""
    write_line("")
    write_line(f"{model.model}: {model.runs_on or 'its driver does not say what runs it'}")
    write_line(f"weights {model.quant or 'not quantized'}; keys and values {model.kv_quant or 'not quantized'}")
    if model.ops:
        write_table(table_of(list(model.ops), OP_COLUMNS))


def rows_of(frame: TopFrame) -> Iterator[DeviceRow]:
    """A line for each device."""
    is_one = len(frame.workers) == 1
    for worker in frame.workers:
        name = "" if is_one else worker.device
        memory = next(tier for tier in frame.tiers if (tier.tier, tier.device) == ("device", name))
        there = [model.name for model in frame.models if model.device and (is_one or name in model.device.split(", "))]
        yield DeviceRow(
            device=worker.device,
            driver=worker.driver,
            state=worker.state,
            busy=worker.busy,
            restarts=worker.restarts,
            pid=worker.pid,
            memory_bytes=memory.total_bytes,
            free_bytes=memory.free_bytes,
            weights_bytes=memory.weights_bytes,
            models=tuple(sorted(there)),
        )
