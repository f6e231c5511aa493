"""Explain: why a context or a model is where it is, why it waits, and the smallest change that would help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cli.handle import find_context, short
from cli.render import bytes_text, count_of, write_line
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client.memory_values import Explanation, Holding


@click.command(short_help="Say why something waits, and what would help.")
@click.argument("subject", metavar="CONTEXT|MODEL")
@output_option
@pass_shell
def explain(shell: Shell, subject: str) -> None:
    """Say where a context or a model is, why it waits, who holds what it needs, and the smallest change that would help.

    A name of a model is taken for one; everything else for the beginning of a context's id.
    """
    with shell.connect() as client:
        if any(model.name == subject for model in client.models()):
            told = client.explain(model=subject)
        else:
            told = client.explain(context_id=find_context(client, subject).id)
    if not shell.printer.is_for_people:
        shell.printer.item(told, (), name=lambda it: str(it.subject))
        return
    for line in lines_of(told):
        write_line(line)


def lines_of(told: Explanation) -> Iterator[str]:
    """An explanation as a person reads it: one fact per line, what would help last."""
    noun, _, name = told.subject.partition(" ")
    yield f"{noun} {short(name) if noun == 'context' else name} is {told.state}"
    yield f"  {capital(told.summary)}"
    yield from body_lines(told)


def body_lines(told: Explanation, *, has_places: bool = True) -> Iterator[str]:
    """What follows the summary: where its bytes are and its place in line (`has_places`), what is in its way, what would help."""
    if told.placements and has_places:
        yield ""
        yield "where its bytes are"
        for place in told.placements:
            pages = count_of(place.num_pages, "page") if place.num_pages else ""
            size = bytes_text(place.bytes) if place.tier != "nowhere" else "-"
            fate = ", computed when needed" if place.tier == "nowhere" else ""
            where = f"{place.device} {place.tier}".strip()
            yield f"  {where:<8} {size:>9}  {pages}{fate}".rstrip()
    if told.obstacles:
        yield ""
        yield "in its way"
        for obstacle in told.obstacles:
            yield f"  {obstacle.code.lower().replace('_', ' '):<14} {obstacle.text}"
    if told.queue is not None and told.state != "running" and has_places:
        queue = told.queue
        yield ""
        yield f"in line: number {queue.position or '-'} of its tenant's {queue.tenant_waiting}; {queue.waiting} wait, {queue.running} run"
    if told.holders:
        yield ""
        first = told.holders[0]
        yield f"who holds the {first.tier}" + (f" of {first.device}" if first.device else "")
        yield from (f"  {bytes_text(holding.bytes):>9}  {holder_text(holding)}" for holding in told.holders)
    if told.remedies:
        yield ""
        yield "what would help, all of it together" if told.remedies[0].is_part else "what would help, the smallest change first"
        yield from (f"  - {remedy.text}" for remedy in told.remedies)


def holder_text(holding: Holding) -> str:
    """Who holds something."""
    if holding.kind in ("weights", "adapter"):
        return f"{'model' if holding.kind == 'weights' else 'adapter'} {holding.name}"
    if holding.state == "cache":
        return f"prefixes of {holding.owner} that nobody uses now"
    named = f"context {short(holding.name)}" if holding.name else "a context"
    return f"{named} of {holding.owner} ({holding.state})"


def capital(sentence: str) -> str:
    """A sentence with a capital letter."""
    return sentence[:1].upper() + sentence[1:]
