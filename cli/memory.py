"""Memory: who holds what, tier by tier, and how pages came back."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

import click

from cli.bars import WEIGHTS, Bar, write_bars
from cli.handle import short
from cli.render import Column, bytes_text, table_of, write_line, write_table
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client.memory_values import Memory, PathDecision, TierAccount

KINDS = ("kv", "cache", "weights", "adapter", "workspace", "staging", "job", "foreign")
DEFAULT_DECISIONS = 20


def size(count: int) -> str:
    """A size, or a dash where there is none."""
    return bytes_text(count) if count else "-"


def kind_text(kind: str, account: TierAccount) -> str:
    """What an account holds of one kind."""
    return size(account.kinds.get(kind, 0))


def account_columns(accounts: Collection[TierAccount]) -> list[Column]:
    """How accounts are shown; a kind that nobody holds has no column, unless it is KV."""
    held = {kind for account in accounts for kind, bytes_held in account.kinds.items() if bytes_held}
    kinds = [kind for kind in KINDS if kind in held or kind == "kv"]
    return [
        Column("TENANT", lambda a: a.owner),
        *([Column("DEVICE", lambda a: a.device)] if any(account.device for account in accounts) else []),
        Column("TIER", lambda a: a.tier),
        *(Column(kind.upper(), partial(kind_text, kind), is_number=True) for kind in kinds),
        Column("USED", lambda a: size(a.used_bytes), is_number=True),
        Column("GUARANTEE", lambda a: size(a.guarantee_bytes), is_number=True),
        Column("LIMIT", lambda a: size(a.limit_bytes), is_number=True),
        Column("BORROWED", lambda a: size(a.borrowed_bytes), is_number=True),
        Column("OVER LIMIT", lambda a: size(a.excess_bytes), is_number=True),
        Column("PINNED", lambda a: size(a.pinned_bytes), is_wide=True, is_number=True),
        Column("WEIGHT", lambda a: str(a.weight), is_wide=True, is_number=True),
    ]


DECISION_COLUMNS = (
    Column("AT", lambda d: time.strftime("%H:%M:%S", time.localtime(d.at))),
    Column("CONTEXT", lambda d: short(d.context_id)),
    Column("MODEL", lambda d: d.model),
    Column("TOKENS", lambda d: str(d.num_tokens), is_number=True),
    Column("KEPT", lambda d: str(d.keep_tokens), is_number=True),
    Column("CHOSEN", lambda d: d.chosen),
    Column("COST", lambda d: seconds_text(d.cost_s), is_number=True),
    Column("INSTEAD OF", lambda d: d.alternative),
    Column("COST", lambda d: seconds_text(d.alternative_cost_s), is_number=True),
    Column("MEASURED", lambda d: seconds_text(d.measured_s), is_number=True),
)


@click.command(short_help="Show who holds the memory.")
@click.option("--decisions", is_flag=True, help="Show how pages came back, what that cost, and what the other way would have cost.")
@click.option("--count", type=click.IntRange(1, 1000), default=DEFAULT_DECISIONS, show_default=True, help="So many decisions at most.")
@output_option
@pass_shell
def mem(shell: Shell, decisions: bool, count: int) -> None:
    """Show every tier as a bar, and who holds what of it: what is guaranteed, borrowed, and over a limit.

    \b
    USED       with everybody beneath it; the other sizes are the tenant's own
    GUARANTEE  what it uses below this is not reclaimed for others
    BORROWED   what it uses above its guarantee; given back first by
               whoever borrows most per weight
    OVER LIMIT the limit was lowered, or a sharer left: reclaimed with the
               next plans
    """
    with shell.connect() as client:
        memory = client.memory(num_decisions=count if decisions else 0)
    if decisions:
        show_decisions(shell, memory.decisions)
    elif shell.printer.is_for_people:
        show_memory(shell, memory)
    else:
        shell.printer.item(memory, (), name=lambda m: "\n".join(sorted({account.owner for account in m.accounts})))


def show_memory(shell: Shell, memory: Memory) -> None:
    """Draw the bars, and the accounts below."""
    write_bars(bars_of(memory))
    if memory.accounts:
        write_line("")
        columns = [column for column in account_columns(memory.accounts) if shell.printer.format.value == "wide" or not column.is_wide]
        write_table(table_of(list(memory.accounts), columns))


def bars_of(memory: Memory) -> list[Bar]:
    """A bar for each tier of each device: weights, then what every tenant holds."""
    bars = []
    for tier in memory.tiers:
        own = [(account.owner, account.kinds) for account in memory.accounts if (account.tier, account.device) == (tier.tier, tier.device)]
        weights = sum(kinds.get("weights", 0) for _owner, kinds in own)
        parts = [(owner, sum(kinds.values()) - kinds.get("weights", 0) - kinds.get("workspace", 0)) for owner, kinds in own]
        note = f"{bytes_text(tier.free_bytes)} free"
        if tier.guaranteed_bytes:
            note += f", {bytes_text(tier.guaranteed_bytes)} guaranteed"
        if tier.kinds.get("workspace"):
            note += f", and {bytes_text(tier.kinds['workspace'])} of workspace beyond it"
        used = tier.total_bytes - tier.free_bytes
        filled = ((WEIGHTS, weights), *(part for part in parts if part[1]))
        bars.append(Bar(f"{tier.device} {tier.tier}".strip(), tier.total_bytes, used, filled, note))
    return bars


def show_decisions(shell: Shell, decisions: Iterable[PathDecision]) -> None:
    """Print decisions, newest first."""
    found = list(decisions)
    if not found and shell.printer.is_for_people:
        write_line("Nothing was decided yet: no request has found pages of its context on host or disk.")
        return
    shell.printer.rows(found, DECISION_COLUMNS, name=lambda decision: str(decision.context_id))


def seconds_text(seconds: float | None) -> str:
    """A duration of a move: 850us, 12.5ms, 1.20s; a dash where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f}us"
    return f"{seconds * 1e3:.1f}ms" if seconds < 1.0 else f"{seconds:.2f}s"
