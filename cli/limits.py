"""Limits of tenants as options of a command, and in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from cli.handle import short
from cli.render import Column, bytes_text, word

if TYPE_CHECKING:
    from kerneld_client.memory_values import LimitChange
    from kerneld_client.values import Limits

SIZES = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
# Limits that may be soft or hard, and what they are unless they are given a mode.
USUAL_MODES = {"max_running": "soft", "requests_per_minute": "hard", "tokens_per_minute": "hard", "loads_per_hour": "hard"}
MAX_WEIGHT = 10_000


def parse_size(text: str) -> int:
    """Bytes, as a number or with a binary suffix: 1048576, 512MiB, 2GiB."""
    match = re.fullmatch(r"(\d+)\s*([KMGT]i)?B?", text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 1048576, 512MiB or 2GiB.")
    return int(match[1]) * SIZES[match[2] or ""]


def parse_weight(text: str) -> int:
    """A weight. 0 is none: it would be a share of nothing."""
    if not re.fullmatch(r"[+-]?\d+", text) or not 1 <= int(text) <= MAX_WEIGHT:
        advice = "Who is to get only what others leave uses contexts of the class idle (--priority idle)."
        raise click.BadParameter(f"{text} is not a weight: use 1 to {MAX_WEIGHT}. {advice}")
    return int(text)


class _LimitName(click.Choice[str]):
    """The name of a limit that may be soft or hard, as the options or as the interface write it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = str(value).removeprefix("--").replace("-", "_")
        if name not in USUAL_MODES:
            self.fail(f"{value!r} is always hard, or is no limit; soft or hard can be {', '.join(USUAL_MODES)}.", param, ctx)
        return name


_NAME = _LimitName(list(USUAL_MODES))
_LIMITS = (
    click.option("--device-bytes", type=parse_size, metavar="SIZE", help="Device memory of its KV."),
    click.option("--host-bytes", type=parse_size, metavar="SIZE", help="Host memory of its KV."),
    click.option("--disk-bytes", type=parse_size, metavar="SIZE", help="Disk space of its KV."),
    click.option("--device-guarantee-bytes", type=parse_size, metavar="SIZE", help="Device memory that is not reclaimed for others."),
    click.option("--host-guarantee-bytes", type=parse_size, metavar="SIZE", help="Host memory that is not reclaimed for others."),
    click.option("--disk-guarantee-bytes", type=parse_size, metavar="SIZE", help="Disk space that is not reclaimed for others."),
    click.option("--image-bytes", type=parse_size, metavar="SIZE", help="Disk space of its images."),
    click.option("--max-contexts", type=click.IntRange(0), help="Contexts."),
    click.option("--max-running", type=click.IntRange(0), help="Requests running at once; if hard, running or waiting."),
    click.option("--max-queued", type=click.IntRange(0), help="Requests waiting."),
    click.option("--requests-per-minute", type=click.IntRange(0), help="Requests in any minute."),
    click.option("--tokens-per-minute", type=click.IntRange(0), help="Tokens in any minute, input and output."),
    click.option("--loads-per-hour", type=click.IntRange(0), help="Loads of models that are not on the device, in any hour."),
    click.option("--soft", type=_NAME, multiple=True, metavar="LIMIT", help="Requests above this limit wait; may be repeated."),
    click.option("--hard", type=_NAME, multiple=True, metavar="LIMIT", help="Requests above this limit are refused; may be repeated."),
)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the limits of a tenant as options; 0 is no limit of its own."""
    for option in reversed(_LIMITS):
        command = option(command)
    return command


def is_any_named(named: Mapping[str, int | tuple[str, ...] | None]) -> bool:
    """Whether any option of `limit_options` was given."""
    return any(value not in (None, ()) for value in named.values())


def make_limits(named: Mapping[str, int | tuple[str, ...] | None], before: Limits | None = None) -> Limits:
    """The limits that were named, over those before. Raises: UsageError, if one is to be soft and hard."""
    from kerneld_client.values import LimitMode, Limits

    limits, modes = before or Limits(), dict[str, LimitMode]()
    for mode in (LimitMode.SOFT, LimitMode.HARD):
        names = named.get(mode.value)
        for name in names if isinstance(names, tuple) else ():
            if name in modes and modes[name] is not mode:
                raise click.UsageError(f"{name} cannot be soft and hard.")
            modes[name] = mode
    amounts = {name: value for name, value in named.items() if isinstance(value, int)}
    return replace(limits, modes={**limits.modes, **modes}, **amounts)


def limit_text(count: int, show: Callable[[int], str] = str) -> str:
    """A limit, or a dash where there is none."""
    return show(count) if count else "-"


def mode_text(limits: Limits, name: str) -> str:
    """A limit that may be soft or hard, and which of the two it is."""
    count: int = getattr(limits, name)
    return f"{count} {word(limits.modes.get(name) or USUAL_MODES[name])}" if count else "-"


def limit_columns() -> tuple[Column, ...]:
    """The limits of a tenant where there is room for them."""
    return (
        Column("MAX DEVICE", lambda t: limit_text(t.limits.device_bytes, bytes_text), is_wide=True, is_number=True),
        Column("MAX HOST", lambda t: limit_text(t.limits.host_bytes, bytes_text), is_wide=True, is_number=True),
        Column("MAX DISK", lambda t: limit_text(t.limits.disk_bytes, bytes_text), is_wide=True, is_number=True),
        Column("HOST GUARANTEE", lambda t: limit_text(t.limits.host_guarantee_bytes, bytes_text), is_wide=True, is_number=True),
        Column("DISK GUARANTEE", lambda t: limit_text(t.limits.disk_guarantee_bytes, bytes_text), is_wide=True, is_number=True),
        Column("MAX IMAGES", lambda t: limit_text(t.limits.image_bytes, bytes_text), is_wide=True, is_number=True),
        Column("MAX CONTEXTS", lambda t: limit_text(t.limits.max_contexts), is_wide=True, is_number=True),
        Column("MAX RUNNING", lambda t: mode_text(t.limits, "max_running"), is_wide=True, is_number=True),
        Column("MAX QUEUED", lambda t: limit_text(t.limits.max_queued), is_wide=True, is_number=True),
        Column("REQUESTS/MIN", lambda t: mode_text(t.limits, "requests_per_minute"), is_wide=True, is_number=True),
        Column("TOKENS/MIN", lambda t: mode_text(t.limits, "tokens_per_minute"), is_wide=True, is_number=True),
        Column("LOADS/HOUR", lambda t: mode_text(t.limits, "loads_per_hour"), is_wide=True, is_number=True),
    )


def change_text(change: LimitChange) -> str:
    """What became of a change of a limit, on one line."""
    name = change.field.removesuffix("_bytes").replace("_", " ") + ("" if "guarantee" in change.field else " limit")
    sizes = f"{limit_text(change.before, bytes_text)} -> {limit_text(change.after, bytes_text)}"
    if not change.awaited_bytes:
        return f"{name} {sizes}: {word(change.outcome)}"
    holders = [f"{short(item.name) or 'a context'} ({item.state}, {bytes_text(item.bytes)})" for item in change.awaited_from[:3]]
    more = f" and {len(change.awaited_from) - 3} more" if len(change.awaited_from) > 3 else ""
    return f"{name} {sizes}: {word(change.outcome)}, {bytes_text(change.awaited_bytes)} awaited from {', '.join(holders)}{more}"
