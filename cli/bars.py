"""Bars: how full something is, and with what: in colour on a terminal, in plain characters elsewhere.

device  ██████▓▓▓▓▒▒▒▒▒▒▒▒····················  18.0 of 32 MiB, 14.0 MiB free
        █ weights 6 MiB   ▓ lab/ann 4 MiB   ▒ lab/bob 8 MiB
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cli.render import bar_text, bytes_text, shown, write_line

WIDTH = 40
WEIGHTS_MARK = "#"
MARKS = "=+*o%@"  # by part, in order; used again when there are more parts than marks
WEIGHTS_COLOUR = "bright_black"
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar. `parts` are what fills it, with their names; weights have a mark of their own. `note` stands behind the sizes."""

    name: str
    total_bytes: int
    used_bytes: int
    parts: tuple[tuple[str, int], ...]
    note: str = ""

    @property
    def sizes(self) -> str:
        """What stands behind the bar."""
        return f"{bytes_text(self.used_bytes)} of {bytes_text(self.total_bytes)}" + (f", {self.note}" if self.note else "")


def plain_lines(bars: Iterable[Bar]) -> Iterator[str]:
    """Bars in characters that every file can hold: a mark for each part, dots for what is free, a legend below."""
    bars = list(bars)
    width = _name_width(bars)
    for bar in bars:
        marks = [WEIGHTS_MARK if name == WEIGHTS else MARKS[idx % len(MARKS)] for idx, name in _numbered(bar)]
        drawn = bar_text(list(zip(marks, (size for _name, size in bar.parts), strict=True)), bar.total_bytes, WIDTH)
        yield f"{bar.name:<{width}} |{drawn}| {bar.sizes}"
        legend = [f"{mark} {name} {bytes_text(size)}" for mark, (name, size) in zip(marks, bar.parts, strict=True) if size]
        if legend:
            yield " " * (width + 2) + "  ".join(legend)


def write_bars(bars: Iterable[Bar]) -> None:
    """Write bars: coloured blocks on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        for line in plain_lines(bars):
            write_line(line)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    bars = list(bars)
    width = _name_width(bars)
    for bar in bars:
        colours = [WEIGHTS_COLOUR if name == WEIGHTS else COLOURS[idx % len(COLOURS)] for idx, name in _numbered(bar)]
        drawn, left = Text().append(f"{bar.name:<{width}}  ", style="bold"), WIDTH
        for colour, (_name, size) in zip(colours, bar.parts, strict=True):
            cells = min(max(1, round(WIDTH * size / bar.total_bytes)), left) if size and bar.total_bytes else 0
            drawn.append("█" * cells, style=colour)
            left -= cells
        drawn.append("·" * left, style="dim")
        drawn.append(f"  {bar.sizes}")
        console.print(drawn)
        legend = Text(" " * (width + 2))
        for colour, (name, size) in zip(colours, bar.parts, strict=True):
            if size:
                legend.append("█ ", style=colour).append(f"{shown(name)} {bytes_text(size)}   ")
        if legend.plain.strip():
            console.print(legend)


def _name_width(bars: Iterable[Bar]) -> int:
    """Columns for the names."""
    return max((6, *(len(bar.name) for bar in bars)))


def _numbered(bar: Bar) -> list[tuple[int, str]]:
    """Names of the parts with their numbers; weights take none."""
    numbered, idx = [], 0
    for name, _size in bar.parts:
        numbered.append((idx, name))
        idx += name != WEIGHTS
    return numbered
