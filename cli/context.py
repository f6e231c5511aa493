"""Contexts: ps, and the group ctx."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from cli.handle import find_context, short
from cli.render import Column, Printer, bytes_text, labels_text, plain, word, write_text
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client import Client
    from kerneld_client.values import ContextInfo

PRIORITIES = click.Choice(["interactive", "batch", "idle"])
DURABILITIES = click.Choice(["journal", "fsync", "none"])
ACCESSES = click.Choice(["read", "write", "fork"])


def context_columns(printer: Printer, contexts: Iterable[ContextInfo] = ()) -> tuple[Column, ...]:
    """How these contexts are shown in a table; where they are on devices of a name, that has a column."""
    has_devices = any(context.device for context in contexts)
    return (
        Column("ID", lambda c: short(c.id), full=lambda c: c.id),
        Column("MODEL", lambda c: f"{c.model}+{c.adapter}" if c.adapter else c.model),
        Column("TENANT", lambda c: c.tenant),
        Column("STATE", lambda c: word(c.state)),
        *([Column("DEVICE", lambda c: c.device or "-")] if has_devices else []),
        Column("TOKENS", lambda c: str(c.num_tokens), is_number=True),
        Column("PAGES DEV", lambda c: str(c.pages.device), is_number=True),
        Column("HOST", lambda c: str(c.pages.host), is_number=True),
        Column("DISK", lambda c: str(c.pages.disk), is_number=True),
        Column("AGE", lambda c: printer.age(c.created_at), is_number=True),
        Column("OWNER", lambda c: c.owner, is_wide=True),
        Column("PRIORITY", lambda c: word(c.priority), is_wide=True),
        Column("NICE", lambda c: str(c.nice), is_wide=True, is_number=True),
        Column("DURABILITY", lambda c: word(c.durability), is_wide=True),
        Column("MAX TOKENS", lambda c: str(c.max_tokens or "-"), is_wide=True, is_number=True),
        Column("LOST", lambda c: str(c.pages.lost), is_wide=True, is_number=True),
        Column("SHARED", lambda c: str(c.pages.shared), is_wide=True, is_number=True),
        Column("GROUP", lambda c: c.sharing_group, is_wide=True),
        Column("PINNED", lambda c: str(c.pinned_tokens or "-"), is_wide=True, is_number=True),
        Column("KV", lambda c: bytes_text(c.kv_bytes), is_wide=True, is_number=True),
        Column("IDLE", lambda c: printer.age(c.last_used_at), is_wide=True, is_number=True),
        Column("LABELS", lambda c: labels_text(c.labels), is_wide=True),
        Column("PARENT", lambda c: c.parent, is_wide=True),
        Column("REQUEST", lambda c: c.active_request, is_wide=True),
        Column("FAILURE", lambda c: c.failure, is_wide=True),
    )


def id_of(context: ContextInfo) -> str:
    """What `-o name` shows of a context."""
    return context.id


def show_context(printer: Printer, context: ContextInfo) -> None:
    """Print one context in a line."""
    printer.row(context, context_columns(printer, [context]), id_of)


def parse_labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """Labels of `key=value` arguments; an empty value removes a label."""
    labels = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.UsageError(f"{pair!r} is not KEY=VALUE.")
        labels[key] = value
    return labels


label_option = click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label; may be repeated.")


def list_contexts(shell: Shell, everybody: bool, model: str, tenant: str) -> None:
    """Print the contexts that are asked for."""
    with shell.connect() as client:
        contexts = client.contexts(all=everybody, model=model, tenant=tenant)
    shell.printer.rows(contexts, context_columns(shell.printer, contexts), id_of)


@click.command(short_help="List contexts.")
@click.option("-a", "--all", "everybody", is_flag=True, help="Of everybody (administrators and operators).")
@click.option("--model", default="", help="Only of this model.")
@click.option("--tenant", default="", help="Only of this tenant.")
@output_option
@pass_shell
def ps(shell: Shell, everybody: bool, model: str, tenant: str) -> None:
    """List your contexts."""
    list_contexts(shell, everybody, model, tenant)


@click.group(short_help="Allocate, fork, change and free contexts.")
def ctx() -> None:
    """Allocate, fork, change and free contexts."""


@ctx.command("ls")
@click.option("-a", "--all", "everybody", is_flag=True, help="Of everybody (administrators and operators).")
@click.option("--model", default="", help="Only of this model.")
@click.option("--tenant", default="", help="Only of this tenant.")
@output_option
@pass_shell
def list_command(shell: Shell, everybody: bool, model: str, tenant: str) -> None:
    """List your contexts (the same as ps)."""
    list_contexts(shell, everybody, model, tenant)


@ctx.command()
@click.argument("model")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest that the context may become.  [default: the model's limit]")
@click.option("--priority", type=PRIORITIES, default="interactive", show_default=True, help="Latency class of its requests.")
@click.option("--nice", type=click.IntRange(-20, 19), default=0, show_default=True, help="Order among your own requests; less is sooner.")
@click.option("--durability", type=DURABILITIES, default="journal", show_default=True, help="How hard its tokens are kept.")
@click.option("--seed", type=click.IntRange(0), help="Number from which all draws follow.  [default: random]")
@click.option("--share-group", "sharing_group", default=None, metavar="NAME", help="Share equal beginnings with this group's contexts.")
@click.option("--adapter", help="Run with this adapter of MODEL. (An adapter's name as MODEL does the same.)")
@label_option
@output_option
@pass_shell
def alloc(shell: Shell, /, model: str, labels: tuple[str, ...], **options: Any) -> None:
    """Allocate an empty context on MODEL."""
    asked = {name: value for name, value in options.items() if value is not None}
    with shell.connect() as client:
        context = client.alloc(model, labels=parse_labels(labels), **asked)
        show_context(shell.printer, context.stat())


@ctx.command()
@click.argument("context_id", metavar="CTX")
@click.option("--at", type=click.IntRange(0), help="Fork at this offset.  [default: the end]")
@click.option("--seed", type=click.IntRange(0), help="Number from which its draws follow.  [default: a new one]")
@label_option
@output_option
@pass_shell
def fork(shell: Shell, /, context_id: str, labels: tuple[str, ...], **options: Any) -> None:
    """Make a context that shares the past of CTX."""
    asked: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    with shell.connect() as client:
        branch = find_context(client, context_id).fork(labels=parse_labels(labels), **asked)
        show_context(shell.printer, branch.stat())


@ctx.command()
@click.argument("context_ids", metavar="CTX...", nargs=-1, required=True)
@output_option
@pass_shell
def free(shell: Shell, context_ids: tuple[str, ...]) -> None:
    """Free contexts, whatever they are doing."""
    with shell.connect() as client:
        for context_id in context_ids:
            context = find_context(client, context_id)
            context.free()
            shell.printer.done(f"{context_id} freed", {"id": context.id, "freed": True})


@ctx.command()
@click.argument("context_id", metavar="CTX")
@output_option
@pass_shell
def stat(shell: Shell, context_id: str) -> None:
    """Show everything about CTX."""
    with shell.connect() as client:
        shell.printer.item(find_context(client, context_id).stat(), context_columns(shell.printer), id_of)


@ctx.command()
@click.argument("context_id", metavar="CTX")
@click.option("--offset", type=click.IntRange(0), default=0, show_default=True, help="Position of the first token.")
@click.option("--limit", type=click.IntRange(0), default=0, help="Most tokens.  [default: 4096]")
@output_option
@pass_shell
def read(shell: Shell, context_id: str, offset: int, limit: int) -> None:
    """Print the text of CTX; tokens too as JSON or YAML."""
    with shell.connect() as client:
        text = find_context(client, context_id).read(offset, limit)
    if shell.printer.is_for_people:
        write_text(text.text + "\n")
    else:
        shell.printer.document(plain(text))


@ctx.command(context_settings={"ignore_unknown_options": True})  # a negative number is a number, not an option
@click.argument("context_id", metavar="CTX")
@click.argument("num_tokens", type=click.IntRange(0))
@output_option
@pass_shell
def truncate(shell: Shell, context_id: str, num_tokens: int) -> None:
    """Roll CTX back to its first NUM_TOKENS tokens."""
    change(shell, lambda client: find_context(client, context_id).truncate(num_tokens))


@ctx.command()
@click.argument("context_id", metavar="CTX")
@click.option(
    "--to", "tier", type=click.Choice(["disk"]), help="Move its pages there, but for those that other contexts share, and wait for it."
)
@output_option
@pass_shell
def suspend(shell: Shell, context_id: str, tier: str | None) -> None:
    """Make the pages of CTX the first to be reclaimed."""
    change(shell, lambda client: find_context(client, context_id).suspend(to_disk=tier == "disk"))


@ctx.command()
@click.argument("context_id", metavar="CTX")
@output_option
@pass_shell
def resume(shell: Shell, context_id: str) -> None:
    """Make a suspended CTX an ordinary one again."""
    change(shell, lambda client: find_context(client, context_id).resume())


@ctx.command("set")
@click.argument("context_id", metavar="CTX")
@click.option("--nice", type=click.IntRange(-20, 19), help="Order among your own requests; less is sooner.")
@click.option("--priority", type=PRIORITIES, help="Latency class of its requests.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest that the context may become.")
@click.option("--pin/--no-pin", "pinned", default=None, help="Let the pages of the tokens that it has now go last of all of its tenant.")
@click.option("-l", "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label; an empty value removes it. May be repeated.")
@output_option
@pass_shell
def set_command(shell: Shell, /, context_id: str, labels: tuple[str, ...], **options: Any) -> None:
    """Change CTX; what is not named stays."""
    asked: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    change(shell, lambda client: find_context(client, context_id).set(labels=parse_labels(labels), **asked))


@ctx.command()
@click.argument("context_id", metavar="CTX")
@click.argument("grantee")
@click.option("--access", type=ACCESSES, multiple=True, default=("read",), show_default=True, help="What is allowed; may be repeated.")
@click.option(
    "--for", "lifetime_s", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Ends after this time.  [default: never]"
)
@output_option
@pass_shell
def grant(shell: Shell, context_id: str, grantee: str, access: tuple[str, ...], lifetime_s: float | None) -> None:
    """Let GRANTEE (principal:NAME or tenant:PATH) use CTX."""
    expires_at = shell.printer.clock() + lifetime_s if lifetime_s else 0.0
    change(shell, lambda client: find_context(client, context_id).grant(grantee, access=list(access), expires_at=expires_at))


@ctx.command()
@click.argument("context_id", metavar="CTX")
@click.argument("grantee")
@output_option
@pass_shell
def revoke(shell: Shell, context_id: str, grantee: str) -> None:
    """Take back what GRANTEE was granted on CTX."""
    change(shell, lambda client: find_context(client, context_id).revoke(grantee))


def change(shell: Shell, verb: Callable[[Client], ContextInfo]) -> None:
    """Call a verb that gives the changed context, and show that."""
    with shell.connect() as client:
        show_context(shell.printer, verb(client))
