"""Sharing groups: tenants that may compute equal beginnings once, together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.render import Column, Printer
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client.values import SharingGroup


def group_columns(printer: Printer) -> tuple[Column, ...]:
    """How a sharing group is shown in a table."""
    return (
        Column("GROUP", lambda g: g.name),
        Column("CONTEXTS", lambda g: str(g.num_contexts), is_number=True),
        Column("MEMBERS", lambda g: ",".join(g.members) or "-"),
        Column("AGE", lambda g: printer.age(g.created_at), is_wide=True, is_number=True),
    )


def name_of(group: SharingGroup) -> str:
    """What `-o name` shows of a sharing group."""
    return group.name


@click.group("share-group", short_help="Let tenants share equal beginnings.")
def share_group() -> None:
    """Let tenants share equal beginnings of their contexts.

    Within a tenant that is always so; across tenants only in a group, and only for contexts that were allocated in it
    (kernelctl ctx alloc --share-group). How fast an answer begins then tells members what others of the group have asked.
    """


@share_group.command()
@click.argument("name")
@click.argument("members", metavar="TENANT...", nargs=-1)
@output_option
@pass_shell
def add(shell: Shell, name: str, members: tuple[str, ...]) -> None:
    """Add a group of tenants; whoever is below one of them is a member too."""
    with shell.connect() as client:
        shell.printer.row(client.add_sharing_group(name, members), group_columns(shell.printer), name_of)


@share_group.command("set")
@click.argument("name")
@click.argument("members", metavar="TENANT...", nargs=-1)
@output_option
@pass_shell
def set_command(shell: Shell, name: str, members: tuple[str, ...]) -> None:
    """Say who the members are from now on, all of them; contexts that live in the group stay in it."""
    with shell.connect() as client:
        shell.printer.row(client.set_sharing_group(name, members), group_columns(shell.printer), name_of)


@share_group.command("ls")
@output_option
@pass_shell
def list_groups(shell: Shell) -> None:
    """List the groups that you may use; administrators see all."""
    with shell.connect() as client:
        shell.printer.rows(client.sharing_groups(), group_columns(shell.printer), name_of)


@share_group.command()
@click.argument("name")
@output_option
@pass_shell
def rm(shell: Shell, name: str) -> None:
    """Remove a group in which no context lives."""
    with shell.connect() as client:
        client.remove_sharing_group(name)
    shell.printer.done(f"{name} removed", {"name": name, "removed": True})
