"""fsck: checks all that the running daemon keeps. `kerneld fsck` does the same with the state of one that is stopped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from cli.render import Printer, bytes_text, count_of, write_line
from cli.target import Shell, output_option, pass_shell

EXIT_PROBLEMS = 1


@click.command(short_help="Check that all memory and state hold.")
@output_option
@click.pass_context
@pass_shell
def fsck(shell: Shell, ctx: click.Context) -> None:
    """Check books, pages of every tier, images, journal, database and audit log of the running daemon. Exit code 1 if something is wrong.

    Nothing is changed. A page that does not hold is computed again when it is needed; what else is wrong is for a person.
    """
    with shell.connect() as client:
        found = show_parts(shell.printer, ((part, int(part.bytes_read)) for part in client.fsck()))
    if found:
        ctx.exit(EXIT_PROBLEMS)


def show_parts(printer: Printer, parts: Iterable[tuple[Any, int]]) -> int:
    """Print every part as it comes, with the bytes that were read of it; returns how many problems there are."""
    num_problems = 0
    for part, size_bytes in parts:
        num_problems += len(part.problems)
        if not printer.is_for_people:
            printer.record(part)
            continue
        verdict = "ok" if not part.problems else f"{len(part.problems)} wrong"
        checked = count_of(part.num_checked, part.unit.removesuffix("s"))
        read = f", {bytes_text(size_bytes)} read" if size_bytes else ""
        write_line(f"{part.part:<10}  {verdict:<8}  {checked}{read}")
        for problem in part.problems:
            write_line(f"            {problem}")
    if printer.is_for_people:
        write_line("Everything holds." if not num_problems else f"{count_of(num_problems, 'problem')}.")
    return num_problems
