"""The machine as a whole: top, events, drain, whoami."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from cli.bars import WEIGHTS, Bar, plain_lines
from cli.model import columns_for
from cli.render import Column, Printer, bytes_text, duration_text, seconds_text, shown, table_of, word, write_line, write_table
from cli.target import Shell, output_option, pass_shell
from cli.tenant import weight_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from kerneld_client.values import Event, TierUse, TopFrame

MOST_TENANTS = 20  # in a frame
ACTIVITY_COLUMNS = (
    Column("TENANT", lambda a: a.tenant),
    Column("WEIGHT", weight_text, is_number=True),
    Column("USED 10S", lambda a: f"{a.recent_share:.1%}", is_number=True),
    Column("SERVED 10S", lambda a: seconds_text(max(a.recent_us, 0) / 1e6), is_number=True),
    Column("OWED", lambda a: f"{a.owed_us / 1000:.0f} ms", is_number=True),
    Column("WAITING", lambda a: str(a.num_waiting), is_number=True),
    Column("RUNNING", lambda a: str(a.num_running), is_number=True),
    Column("CONTEXTS", lambda a: str(a.num_contexts), is_number=True),
    Column("KV DEVICE", lambda a: bytes_text(a.kv_device_bytes), is_number=True),
)
WORKER_COLUMNS = (
    Column("DEVICE", lambda w: w.device),
    Column("DRIVER", lambda w: w.driver),
    Column("PID", lambda w: str(w.pid), is_number=True),
    Column("STATE", lambda w: word(w.state)),
    Column("BUSY", lambda w: f"{w.busy:.0%}", is_number=True),
    Column("RESTARTS", lambda w: str(w.restarts), is_number=True),
)


@click.command(short_help="Watch the machine.")
@click.option("--once", is_flag=True, help="One frame, then end.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.1, 3600), help="Seconds between frames.  [default: 1]")
@click.option("--count", type=click.IntRange(0), help="End after this many frames; 0 is never.")
@output_option
@pass_shell
def top(shell: Shell, once: bool, interval_s: float | None, count: int | None) -> None:
    """Watch workers, memory, models and tenants; without a terminal, one frame unless --interval or --count asks for more.

    Of tenants, over the last ten seconds or so: USED, the part of all service that each had, and SERVED, what that was. OWED is what its
    siblings owe it now for its weight.
    """
    is_watched = sys.stdout.isatty() and shell.printer.is_for_people
    with shell.connect() as client:
        if once or (interval_s is None and count is None and not is_watched):
            show_frame(shell.printer, client.top())
            return
        frames = client.top_stream(interval_s=interval_s or 1.0, count=count or 0)
        if is_watched:
            watch(frames)
        else:
            for frame in frames:
                show_frame(shell.printer, frame)


@click.command(short_help="Show what happened.")
@click.option("-f", "--follow", is_flag=True, help="Go on as things happen.")
@click.option("--since", type=click.IntRange(0), default=0, help="Only events after this sequence number.")
@output_option
@pass_shell
def events(shell: Shell, follow: bool, since: int) -> None:
    """Print events, one per line."""
    with shell.connect() as client:
        for event in client.events(follow=follow, since=since):
            if shell.printer.is_for_people:
                write_line(event_text(event))
                sys.stdout.flush()
            else:
                shell.printer.record(event)


@click.command(short_help="Refuse new work, wait for the rest, stop the daemon.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds to wait.")
@output_option
@pass_shell
def drain(shell: Shell, timeout_s: float) -> None:
    """Refuse new work, wait for requests that run, and stop the daemon; what is left goes on at its next start."""
    with shell.connect() as client:
        drained = client.drain(timeout_s=timeout_s)
    sentence = f"Drained: {drained.finished} requests finished, {drained.left_for_next_start} left for the next start."
    shell.printer.done(sentence, {"finished": drained.finished, "left_for_next_start": drained.left_for_next_start})


@click.command(short_help="Show who the daemon takes you for.")
@output_option
@pass_shell
def whoami(shell: Shell) -> None:
    """Show principal, tenant and roles of this connection."""
    columns = (
        Column("NAME", lambda p: p.name),
        Column("TENANT", lambda p: p.tenant),
        Column("ROLES", lambda p: ", ".join(sorted(word(role) for role in p.roles))),
        Column("VIA", lambda p: p.via),
    )
    with shell.connect() as client:
        shell.printer.item(client.whoami(), columns, name=lambda p: str(p.name))


def show_frame(printer: Printer, frame: TopFrame) -> None:
    """Print one frame below the last."""
    if not printer.is_for_people:
        printer.record(frame)
        return
    for line in head_lines(frame):
        write_line(line)
    for items, columns in tables_of(frame):
        write_line("")
        write_table(table_of(items, columns))


def watch(frames: Iterable[TopFrame]) -> None:
    """Show each frame in the place of the last, until there are no more."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(screen=True, auto_refresh=False) as live:
        for frame in frames:
            parts: list[RenderableType] = [Text(shown("\n".join(head_lines(frame))))]
            for items, columns in tables_of(frame):
                parts += [Text(""), table_of(items, columns)]
            live.update(Group(*parts), refresh=True)


def head_lines(frame: TopFrame) -> Iterator[str]:
    """What stands above the tables of a frame."""
    yield (
        f"up {duration_text(frame.uptime_s)} (boot {frame.boot_generation})  running {frame.running}  waiting {frame.waiting}"
        f"  contexts {frame.num_contexts}  tokens/s {frame.tokens_per_s:.0f} out {frame.prefill_tokens_per_s:.0f} in  jain {frame.jain:.3f}"
    )
    yield from memory_lines(frame.tiers)
    if len(frame.activities) > MOST_TENANTS:
        yield f"tenants: the {MOST_TENANTS} busiest of {len(frame.activities)}"


def tables_of(frame: TopFrame) -> Iterator[tuple[list[object], list[Column]]]:
    """Workers, models and tenants of a frame, those that there are."""
    busiest = frame.activities[:MOST_TENANTS]
    for items, columns in ((frame.workers, WORKER_COLUMNS), (frame.models, columns_for(frame.models)), (busiest, ACTIVITY_COLUMNS)):
        if items:
            yield list(items), [column for column in columns if not column.is_wide]


def memory_lines(tiers: Iterable[TierUse]) -> Iterator[str]:
    """A bar for each tier, and what its marks mean."""
    yield from plain_lines(bar_of(tier) for tier in tiers)


def bar_of(tier: TierUse) -> Bar:
    """One tier as a bar: weights, then KV by tenant."""
    parts = ((WEIGHTS, tier.weights_bytes), *((tenant, tier.kv_bytes[tenant]) for tenant in sorted(tier.kv_bytes)))
    return Bar(f"{tier.device} {word(tier.tier)}".strip(), tier.total_bytes, tier.total_bytes - tier.free_bytes, parts)


def event_text(event: Event) -> str:
    """An event on one line."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    facts = " ".join(f"{key}={event.facts[key]}" for key in sorted(event.facts))
    return f"{at}  {event.sequence:>6}  {event.name}  {facts}".rstrip()
