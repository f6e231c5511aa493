"""Devices: the group device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from cli.render import Column, bytes_text, word
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
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


@click.group(short_help="List devices.")
def device() -> None:
    """List devices."""


@device.command("ls")
@output_option
@pass_shell
def list_command(shell: Shell) -> None:
    """List the devices of the daemon: what runs them, how full they are, and the models on them."""
    with shell.connect() as client:
        frame = client.top()
    shell.printer.rows(list(rows_of(frame)), COLUMNS, lambda row: str(row.device))


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
