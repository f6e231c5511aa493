"""Images: the group ckpt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.context import label_option, parse_labels, show_context
from cli.handle import find_context, find_image, short
from cli.render import Column, Printer, bytes_text, plain, write_line, write_note
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client.values import Image

EXIT_BROKEN = 1


def image_columns(printer: Printer) -> tuple[Column, ...]:
    """How an image is shown in a table."""
    return (
        Column("ID", lambda i: short(i.id), full=lambda i: i.id),
        Column("NAME", lambda i: i.name),
        Column("MODEL", lambda i: i.model),
        Column("TOKENS", lambda i: str(i.num_tokens), is_number=True),
        Column("PAGES", lambda i: str(i.num_pages), is_number=True),
        Column("SIZE", lambda i: bytes_text(i.bytes), is_number=True),
        Column("AGE", lambda i: printer.age(i.created_at), is_number=True),
        Column("CONTEXT", lambda i: i.context_id, is_wide=True),
        Column("OWNER", lambda i: i.owner, is_wide=True),
        Column("TENANT", lambda i: i.tenant, is_wide=True),
    )


def id_of(image: Image) -> str:
    """What `-o name` shows of an image."""
    return image.id


@click.group(short_help="Checkpoint contexts to images and restore them.")
def ckpt() -> None:
    """Checkpoint contexts to images and restore them."""


@ckpt.command()
@click.argument("context_id", metavar="CTX")
@click.option("--name", default="", help="Name for people.")
@click.option("--tokens-only", is_flag=True, help="Leave the pages out; a restore then computes them again.")
@output_option
@pass_shell
def save(shell: Shell, context_id: str, name: str, tokens_only: bool) -> None:
    """Write an image of CTX."""
    with shell.connect() as client:
        image = find_context(client, context_id).checkpoint(name=name, tokens_only=tokens_only)
    shell.printer.row(image, image_columns(shell.printer), id_of)


@ckpt.command()
@click.argument("image_id", metavar="IMAGE")
@label_option
@output_option
@pass_shell
def restore(shell: Shell, image_id: str, labels: tuple[str, ...]) -> None:
    """Make a new context from IMAGE."""
    with shell.connect() as client:
        show_context(shell.printer, client.restore(find_image(client, image_id), labels=parse_labels(labels)).stat())


@ckpt.command("ls")
@click.option("-a", "--all", "everybody", is_flag=True, help="Of everybody (administrators and operators).")
@click.option("--context", "context_id", default="", help="Only those taken from this context.")
@output_option
@pass_shell
def list_command(shell: Shell, everybody: bool, context_id: str) -> None:
    """List your images."""
    with shell.connect() as client:
        taken_from = find_context(client, context_id).id if context_id else ""
        images = client.images(all=everybody, context_id=taken_from)
    shell.printer.rows(images, image_columns(shell.printer), id_of)


@ckpt.command()
@click.argument("image_id", metavar="IMAGE")
@output_option
@click.pass_context
def verify(ctx: click.Context, image_id: str) -> None:
    """Read IMAGE again and check it; exit code 1 if it is not whole."""
    shell = ctx.ensure_object(Shell)
    with shell.connect() as client:
        image = find_image(client, image_id)
        verified = client.verify_image(image)
    if shell.printer.is_for_people:
        for problem in verified.problems:
            write_note(problem)
        write_line(f"{image_id} {'is broken' if verified.problems else 'is whole'}, {bytes_text(verified.bytes_read)} read")
    else:
        shell.printer.document({"id": image, "ok": not verified.problems, **plain(verified)})
    if verified.problems:
        ctx.exit(EXIT_BROKEN)


@ckpt.command()
@click.argument("image_ids", metavar="IMAGE...", nargs=-1, required=True)
@output_option
@pass_shell
def rm(shell: Shell, image_ids: tuple[str, ...]) -> None:
    """Delete images; contexts that were restored from them stay."""
    with shell.connect() as client:
        for image_id in image_ids:
            image = find_image(client, image_id)
            client.delete_image(image)
            shell.printer.done(f"{image_id} deleted", {"id": image, "deleted": True})
