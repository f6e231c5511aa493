"""Tenants and their tokens: the groups tenant and token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.limits import change_text, is_any_named, limit_columns, limit_options, limit_text, make_limits, parse_weight
from cli.render import Column, Printer, bytes_text, count_of, count_text, seconds_text, word, write_line, write_note
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client.memory_values import Contender, TenantActivity
    from kerneld_client.values import TenantInfo, TokenInfo

ROLES = click.Choice(["admin", "operator", "user", "viewer"])


def weight_text(node: Contender | TenantActivity) -> str:
    """A weight, with what it is multiplied by."""
    return str(node.weight) if node.factor_milli == 1000 else f"{node.weight} x {node.factor_milli / 1000:g}"


def tenant_columns(printer: Printer) -> tuple[Column, ...]:
    """How a tenant is shown in a table."""
    return (
        Column("TENANT", lambda t: t.path),
        Column("WEIGHT", lambda t: str(t.weight), is_number=True),
        Column("CONTEXTS", lambda t: str(t.num_contexts), is_number=True),
        Column("RUNNING", lambda t: str(t.num_running), is_number=True),
        Column("QUEUED", lambda t: str(t.num_queued), is_number=True),
        Column("SERVICE", lambda t: seconds_text(t.service / 1e6), is_number=True),
        Column("KV DEVICE", lambda t: bytes_text(t.kv_device_bytes), is_number=True),
        Column("HOST", lambda t: bytes_text(t.kv_host_bytes), is_number=True),
        Column("DISK", lambda t: bytes_text(t.kv_disk_bytes), is_number=True),
        Column("GUARANTEE", lambda t: limit_text(t.limits.device_guarantee_bytes, bytes_text), is_number=True),
        Column("INPUT", lambda t: count_text(t.input_tokens), is_wide=True, is_number=True),
        Column("OUTPUT", lambda t: count_text(t.output_tokens), is_wide=True, is_number=True),
        *limit_columns(),
        Column("AGE", lambda t: printer.age(t.created_at), is_wide=True, is_number=True),
    )


def token_columns(printer: Printer) -> tuple[Column, ...]:
    """How a token is shown in a table; never its secret."""
    return (
        Column("ID", lambda t: t.id),
        Column("TENANT", lambda t: t.tenant),
        Column("NAME", lambda t: t.name),
        Column("ROLES", lambda t: ",".join(sorted(word(role) for role in t.roles))),
        Column("AGE", lambda t: printer.age(t.created_at), is_number=True),
        Column("LAST USED", lambda t: printer.age(t.last_used_at) or "never", is_number=True),
        Column("LEFT", lambda t: printer.left(t.expires_at) or "forever", is_number=True),
    )


def path_of(tenant: TenantInfo) -> str:
    """What `-o name` shows of a tenant."""
    return tenant.path


def id_of(token: TokenInfo) -> str:
    """What `-o name` shows of a token."""
    return token.id


@click.group(short_help="Add, change and remove tenants.")
def tenant() -> None:
    """Add, change and remove tenants. A limit of 0 is none of its own; its parents' limits hold all the same."""


@tenant.command()
@click.argument("path", metavar="NAME")
@click.option("--weight", type=parse_weight, metavar="INTEGER", default="1", show_default=True, help="Its share, against its siblings.")
@limit_options
@output_option
@pass_shell
def add(shell: Shell, /, path: str, weight: int, **limits: int | tuple[str, ...] | None) -> None:
    """Add the tenant NAME; a path such as lab/group makes it a child."""
    with shell.connect() as client:
        shell.printer.row(client.add_tenant(path, weight=weight, limits=make_limits(limits)), tenant_columns(shell.printer), path_of)


@tenant.command("set")
@click.argument("path", metavar="NAME")
@click.option("--weight", type=parse_weight, metavar="INTEGER", help="Its share, against its siblings.")
@limit_options
@output_option
@pass_shell
def set_command(shell: Shell, /, path: str, weight: int | None, **limits: int | tuple[str, ...] | None) -> None:
    """Change weight or limits of a tenant; what is not named stays.

    A limit of memory below what is used is deferred: it holds for new pages at once, and the rest is reclaimed as it falls idle.
    """
    with shell.connect() as client:
        changed, revision = None, ""
        if is_any_named(limits):
            # The daemon takes all limits at once; those that are not named are to stay, as they are now.
            found = next((found for found in client.tenants() if found.path == path), None)
            changed, revision = make_limits(limits, found.limits if found else None), found.revision if found else ""
        tenant = client.set_tenant(path, weight=weight, limits=changed, revision=revision)
    shell.printer.row(tenant, tenant_columns(shell.printer), path_of)
    for change in tenant.changes:
        write_note(change_text(change))


@tenant.command("ls")
@output_option
@pass_shell
def list_tenants(shell: Shell) -> None:
    """List tenants. SERVICE is the device time that was charged to each and those beneath it; JSON and YAML have it in microseconds."""
    with shell.connect() as client:
        shell.printer.rows(client.tenants(), tenant_columns(shell.printer), path_of)


@tenant.command()
@click.argument("path", metavar="NAME")
@output_option
@pass_shell
def show(shell: Shell, path: str) -> None:
    """Show a tenant with all its limits."""
    from kerneld_client.errors import NotFound

    with shell.connect() as client:
        found = next((found for found in client.tenants() if found.path == path), None)
        if found is None:
            raise NotFound(f"There is no tenant {path!r}.", facts={"noun": "tenant", "name": path})
    shell.printer.item(found, tenant_columns(shell.printer), path_of)


@tenant.command()
@click.argument("path", metavar="NAME")
@click.option("--force", is_flag=True, help="Free the contexts it still has.")
@output_option
@pass_shell
def rm(shell: Shell, path: str, force: bool) -> None:
    """Remove a tenant; its frames are zeroed at once."""
    with shell.connect() as client:
        freed = client.remove_tenant(path, force=force)
    shell.printer.done(f"{path} removed, {count_of(freed, 'context')} freed", {"path": path, "contexts_freed": freed})


@click.group(short_help="Make and remove API tokens.")
def token() -> None:
    """Make and remove API tokens."""


@token.command("add")
@click.option("--tenant", "path", required=True, metavar="NAME", help="Whose token it is.")
@click.option("--name", default="", help="What it is for.")
@click.option("--role", "roles", type=ROLES, multiple=True, default=("user",), show_default=True, help="What it may do; may be repeated.")
@click.option(
    "--lifetime",
    "lifetime_s",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="How long it is good for.  [default: forever]",
)
@output_option
@pass_shell
def add_token(shell: Shell, path: str, name: str, roles: tuple[str, ...], lifetime_s: float) -> None:
    """Make a token for a tenant. It is shown once: the daemon keeps only a hash."""
    with shell.connect() as client:
        made = client.add_token(tenant=path, name=name, roles=list(roles), lifetime_s=lifetime_s)
    if shell.printer.is_for_people:
        write_line(made.token)
        write_note(f"Token {made.id} of {made.tenant}; keep it now, it is not shown again.")
    else:
        shell.printer.item(made, (), name=lambda t: str(t.token))


@token.command("ls")
@click.option("--tenant", "path", default="", metavar="NAME", help="Only of this tenant.")
@output_option
@pass_shell
def list_tokens(shell: Shell, path: str) -> None:
    """List tokens, without their secrets."""
    with shell.connect() as client:
        shell.printer.rows(client.tokens(tenant=path), token_columns(shell.printer), id_of)


@token.command("rm")
@click.argument("token_ids", metavar="TOKEN...", nargs=-1, required=True)
@output_option
@pass_shell
def remove_tokens(shell: Shell, token_ids: tuple[str, ...]) -> None:
    """Remove tokens by id; who uses one is out at once."""
    with shell.connect() as client:
        for token_id in token_ids:
            client.remove_token(token_id)
            shell.printer.done(f"{token_id} removed", {"id": token_id, "removed": True})
