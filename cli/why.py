"""Why: when a request has its turn, who is ahead of it, and what is in its way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cli.explain import body_lines, capital
from cli.handle import beginning_with, is_beginning, is_whole_id, short, the_only
from cli.render import Column, Printer, count_of, duration_text, seconds_text, shown, table_lines, word, write_line
from cli.target import Shell, output_option, pass_shell
from cli.tenant import weight_text

if TYPE_CHECKING:
    from kerneld_client import Client
    from kerneld_client.memory_values import Explanation, Outlook, StartEstimate

RANKS = (
    Column("", lambda c: "  *" if c.is_own else "   "),
    Column("TENANT", lambda c: c.tenant),
    Column("WEIGHT", weight_text, is_number=True),
    Column("AHEAD BY", lambda c: f"{c.lag_us / 1000:.1f} ms", is_number=True),
    Column("SERVICE", lambda c: seconds_text(c.service_us / 1e6), is_number=True),
    Column("WAITING", lambda c: str(c.num_waiting), is_number=True),
    Column("RUNNING", lambda c: str(c.num_running), is_number=True),
)


@click.command(short_help="Say when a request has its turn, and why not before.")
@click.argument("subject", metavar="[REQUEST|CONTEXT]", default="")
@click.option("--all", "everybodys", is_flag=True, help="Without a subject: list those of everybody (operators).")
@output_option
@pass_shell
def why(shell: Shell, subject: str, everybodys: bool) -> None:
    """Say when a request has its turn, who is ahead of it and by how much, what is in its way, and what would help.

    Without an argument: list one's own requests that wait or run, with their places and when they start. A subject is the beginning of
    the id of a request, or of its context.
    """
    with shell.connect() as client:
        if not subject:
            found = sorted(client.requests(all=everybodys), key=turn_of)
            shell.printer.rows(found, request_columns(shell.printer), name=lambda it: str(it.request))
            return
        told = explain(client, subject)
    if not shell.printer.is_for_people:
        shell.printer.item(told, (), name=lambda it: str(it.subject))
        return
    for line in lines_of(told, shell.printer):
        write_line(line)


def turn_of(outlook: Outlook) -> tuple[bool, bool, int, float]:
    """Those that run come first, then those in line by their places, then those beside it."""
    return outlook.state != "running", not outlook.position, outlook.position, outlook.arrived_at


def request_columns(printer: Printer) -> tuple[Column, ...]:
    """How a request is shown in a table."""
    return (
        Column("REQUEST", lambda r: short(r.request), full=lambda r: r.request),
        Column("CONTEXT", lambda r: short(r.context_id), full=lambda r: r.context_id),
        Column("TENANT", lambda r: r.tenant),
        Column("STATE", lambda r: r.state),
        Column("PLACE", place_text, is_number=True),
        Column("STARTS IN", lambda r: starts_text(r.estimate) if r.state != "running" else "", is_number=True),
        Column("WAITED", lambda r: seconds_text(r.queue_s), is_number=True),
        Column("TOKENS", lambda r: str(r.output_tokens), is_number=True),
        Column("MODEL", lambda r: r.model),
        Column("CLASS", lambda r: word(r.priority), is_wide=True),
        Column("NICE", lambda r: str(r.nice), is_wide=True, is_number=True),
        Column("PREEMPTED", lambda r: str(r.num_preemptions), is_wide=True, is_number=True),
        Column("AGE", lambda r: printer.age(r.arrived_at), is_wide=True, is_number=True),
        Column("LEFT", lambda r: printer.left(r.deadline), is_wide=True, is_number=True),
    )


def explain(client: Client, typed: str) -> Explanation:
    """What the daemon says of the request or context that a person means. Raises: KerneldError."""
    from kerneld_client.errors import NotFound

    if is_whole_id(typed):
        try:
            return client.explain(request=typed)
        except NotFound:
            return explain_last(client, typed, context_id=typed)
    contexts = client.contexts(all=True)
    requests = {outlook.request for outlook in client.requests(all=True)} | {context.last_request for context in contexts}
    found = beginning_with(typed, requests.union(context.id for context in contexts))
    if not found and is_beginning(typed):  # of one that ended, and whose context is gone, the daemon knows
        return explain_last(client, typed, request=typed.lower())
    whole = the_only("request or context", typed, found)
    return client.explain(request=whole) if whole in requests else client.explain(context_id=whole)


def explain_last(client: Client, typed: str, **subject: str) -> Explanation:
    """What the daemon says of the last subject that can be meant. Raises: KerneldError; NotFound says that nothing else is meant either."""
    from kerneld_client.errors import NotFound

    try:
        return client.explain(**subject)
    except NotFound:
        remembered = "of requests that ended, the latest are remembered until the next restart"
        problem = f"There is no request or context {typed!r}; {remembered}."
        raise NotFound(problem, facts={"noun": "request or context", "name": typed}) from None


def lines_of(told: Explanation, printer: Printer) -> Iterator[str]:
    """An explanation as a person reads it: when it starts, who is ahead, what is in its way, what would help."""
    outlook = told.outlook
    if outlook is None:
        noun, _, name = told.subject.partition(" ")
        yield f"{noun} {short(name)} is {told.state}, and no request waits or runs on it"
        yield f"  {capital(told.summary)}"
        return
    yield f"request {short(outlook.request)} of {outlook.tenant}, on context {short(outlook.context_id)}, is {outlook.state}"
    yield f"  {capital(told.summary)}"
    if outlook.state == "finished":
        yield from past_lines(outlook, printer)
        return
    if outlook.state != "running":
        yield f"  {estimate_text(outlook.estimate)}"
    yield from life_lines(outlook, printer)
    if outlook.contenders:
        yield ""
        yield "who shares with it, the least served first (*: its own tenant, or one above it)"
        yield from table_lines(outlook.contenders, RANKS)
    yield from body_lines(told, has_places=False)


def estimate_text(estimate: StartEstimate) -> str:
    """When it starts, and what such estimates are worth."""
    if estimate.seconds is None:
        return "When it starts is unknown as yet."
    start = "It starts with the next step" if estimate.seconds < 0.05 else f"It starts in about {seconds_text(estimate.seconds)}"
    if estimate.error is None:
        return f"{start}; no such estimate was judged yet."
    return f"{start}; estimates of the last {count_of(estimate.num_judged, 'request')} were off by {estimate.error:.0%} (median)."


def starts_text(estimate: StartEstimate) -> str:
    """When it starts, in a cell."""
    return "?" if estimate.seconds is None else "~" + seconds_text(estimate.seconds)


def place_text(outlook: Outlook) -> str:
    """Its place in the whole line, in a cell."""
    return f"{'>' if outlook.is_position_least else ''}{outlook.position}" if outlook.position else ""


def life_lines(outlook: Outlook, printer: Printer) -> Iterator[str]:
    """Where it stands in line, and what happened to it so far."""
    if outlook.position:
        at_least = "at least " if outlook.is_position_least else ""
        yield f"  In line: {at_least}number {outlook.position} of all, number {outlook.tenant_position} of its tenant's."
    elif outlook.tenant_position:
        yield f"  In line: number {outlook.tenant_position} of its tenant's."
    facts = [f"class {outlook.priority}, nice {outlook.nice}", f"waited {seconds_text(outlook.queue_s)}"]
    if outlook.num_preemptions:
        facts.append(f"preempted {count_of(outlook.num_preemptions, 'time')}")
    if outlook.output_tokens:
        facts.append(count_of(outlook.output_tokens, "output token"))
    if outlook.queue_until and outlook.state != "running":
        facts.append(f"ends if it has not started in {printer.left(outlook.queue_until)}")
    if outlook.deadline:
        facts.append(f"deadline in {printer.left(outlook.deadline)}")
    yield f"  {capital(', '.join(facts))}."


def past_lines(outlook: Outlook, printer: Printer) -> Iterator[str]:
    """How long ago one ended, and what it lived through."""
    first = "no token" if outlook.first_token_s is None else f"first token after {seconds_text(outlook.first_token_s)}"
    life = duration_text(outlook.ended_at - outlook.arrived_at)
    yield shown(f"  It ended {printer.age(outlook.ended_at)} ago, {life} after its arrival; {first}.")
