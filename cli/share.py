"""Shares: how the machine is divided, and what the past does to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.render import Column
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client.usage_values import ShareRecord


def part_text(part: float) -> str:
    """A part of 1 in percent."""
    return f"{part:.1%}"


def branch_text(record: ShareRecord) -> str:
    """A tenant's name, set in as deep as it stands in the tree."""
    above, _, name = str(record.tenant).rpartition("/")
    return "  " * (above.count("/") + 1 if above else 0) + name


def place_of(record: ShareRecord) -> list[str]:
    """Where a node stands in the tree: behind its parent, before its parent's next sibling."""
    return record.tenant.split("/")


def path_of(record: ShareRecord) -> str:
    """What `-o name` shows of a node."""
    return record.tenant


SHARE_COLUMNS = (
    Column("TENANT", branch_text),
    Column("WEIGHT", lambda r: str(r.weight), is_number=True),
    Column("SHARE", lambda r: part_text(r.share), is_number=True),
    Column("OF ALL", lambda r: part_text(r.machine_share), is_number=True),
    Column("USED", lambda r: part_text(r.used_share), is_number=True),
    Column("FACTOR", lambda r: f"{r.factor_milli / 1000:.3f}", is_number=True),
    Column("SHARE NOW", lambda r: part_text(r.effective_share), is_number=True),
    Column("OF ALL NOW", lambda r: part_text(r.effective_machine_share), is_number=True),
    Column("WAITING", lambda r: str(r.num_waiting), is_number=True),
    Column("RUNNING", lambda r: str(r.num_running), is_number=True),
    Column("DECAYED S", lambda r: f"{r.decayed_us / 1e6:.1f}", is_wide=True, is_number=True),
    Column("SERVICE S", lambda r: f"{r.service_us / 1e6:.1f}", is_wide=True, is_number=True),
)


@click.command(short_help="Show how the machine is shared.")
@click.option("-l", "--long", "is_long", is_flag=True, help="The tree of shares; there is no shorter form.")
@output_option
@pass_shell
def share(shell: Shell, is_long: bool) -> None:
    """Show the tree of tenants: the share of each, what it used of late, and what it gets now where all of them want the machine.

    \b
    SHARE      of its parent's, by weights; OF ALL: of the machine
    USED       of what it and its siblings used, with a half-life
    FACTOR     by which its weight is multiplied: above 1 for who used less
               than its share, below 1 for who used more
    SHARE NOW  of its parent's, by weights times factors
    """
    del is_long
    with shell.connect() as client:
        records = client.shares()
    records.sort(key=place_of)
    shell.printer.rows(records, SHARE_COLUMNS, path_of)
