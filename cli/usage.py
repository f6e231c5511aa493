"""Usage: what tenants used, in all or by the hour or day."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cli.render import Column, count_text
from cli.target import Shell, output_option, pass_shell

if TYPE_CHECKING:
    from kerneld_client.usage_values import UsageRecord

UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
ACCEPTED = "use an age such as 30m, 12h, 7d or 4w, or a date such as 2026-03-01 or 2026-03-01T08:00, which is UTC unless it says otherwise"


def parse_moment(text: str) -> float:
    """A point in time, as an age or as an ISO date; Unix seconds. Raises: click.BadParameter."""
    at = _age_of(text.strip())
    at = _date_of(text.strip()) if at is None else at
    if at is None or at < 0:
        raise click.BadParameter(f"{text!r} is not a time; {ACCEPTED}.")
    return at


def _age_of(text: str) -> float | None:
    match = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    return max(time.time() - int(match[1]) * UNITS_S[match[2]], 0.0) if match else None


def _date_of(text: str) -> float | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def usage_columns(by: str) -> list[Column]:
    """How usage is shown in a table."""
    form = "%Y-%m-%d %H:%M" if by == "hour" else "%Y-%m-%d"
    start = [] if by == "total" else [Column(by.upper(), lambda r: time.strftime(form, time.gmtime(r.start)) if r.start else "")]
    return [
        *start,
        Column("TENANT", name_of),
        Column("REQUESTS", lambda r: str(r.requests), is_number=True),
        Column("INPUT", lambda r: count_text(r.input_tokens), is_number=True, full=lambda r: str(r.input_tokens)),
        Column("CACHED", lambda r: count_text(r.cached_tokens), is_number=True, full=lambda r: str(r.cached_tokens)),
        Column("OUTPUT", lambda r: count_text(r.output_tokens), is_number=True, full=lambda r: str(r.output_tokens)),
        Column("DEVICE S", lambda r: f"{r.device_s:.1f}", is_number=True),
        Column("SERVICE S", lambda r: f"{r.service_us / 1e6:.1f}", is_number=True),
        Column("PAGE S", lambda r: count_text(r.device_page_s), is_number=True),
        Column("ON HOST", lambda r: count_text(r.host_page_s), is_wide=True, is_number=True),
        Column("ON DISK", lambda r: count_text(r.disk_page_s), is_wide=True, is_number=True),
        Column("LOADS", lambda r: str(r.loads), is_number=True),
        Column("LOAD S", lambda r: f"{r.load_s:.1f}", is_number=True),
    ]


def name_of(record: UsageRecord) -> str:
    """A tenant; one that is gone is not one of the same name that is there now."""
    return f"{record.tenant} (removed)" if record.is_removed else record.tenant


def total_of(records: Sequence[UsageRecord]) -> UsageRecord:
    """All of them together."""
    sums = {field.name: sum(getattr(record, field.name) for record in records) for field in fields(records[0])[3:]}
    return replace(records[0], tenant="all", start=0.0, is_removed=False, **sums)


@click.command(short_help="Show what tenants used.")
@click.argument("tenant", metavar="[TENANT]", default="")
@click.option("--since", type=parse_moment, default="7d", show_default=True, metavar="WHEN", help="From when: 30m, 12h, 7d, 4w, or a date.")
@click.option("--until", type=parse_moment, metavar="WHEN", help="Until when.  [default: now]")
@click.option(
    "--by", type=click.Choice(["hour", "day", "total"]), default="total", show_default=True, help="What a line covers; days are UTC."
)
@output_option
@pass_shell
def usage(shell: Shell, tenant: str, since: float, until: float | None, by: str) -> None:
    """Show what TENANT and those beneath it used, or all that you may see. Each line is what a tenant used itself; hours count whole.

    \b
    INPUT      tokens of requests that ended, CACHED ones included
    DEVICE S   measured time of steps, split among their rows
    SERVICE S  what its share was charged, by the tariff of each model
    PAGE S     pages held on the device, times seconds (-o wide: on host and
               disk too)
    LOADS      of models, that it paid for or for a part of: each may count for
               several tenants
    LOAD S     time of model loads that it was charged for
    (system)   copies of pages, what is computed again, and loads that served
               nobody

    A kill -9 of the daemon loses the last 15 seconds of all but SERVICE S.
    """
    if since > time.time():
        raise click.BadParameter("it is in the future: nothing was used yet.", param_hint="--since")
    if until is not None and until <= since:
        raise click.BadParameter("it must be later than --since.", param_hint="--until")
    with shell.connect() as client:
        records = client.usage(tenant, since=since, until=until or 0.0, by=by)
    if shell.printer.is_for_people and len(records) > 1:
        records = [*records, total_of(records)]
    shell.printer.rows(records, usage_columns(by), name_of)
