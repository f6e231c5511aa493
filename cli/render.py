"""What commands print: tables for people, JSON and YAML for programs, both on stdout; errors and progress go to stderr.

Keys of JSON and YAML are the field names of the values that the client gives: they do not change between releases. Tables may change.
On a terminal, control characters in text from elsewhere (names, labels, model output) are shown, never obeyed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

UNCUT_WIDTH = 10_000  # a table is as wide as what it holds; a terminal that is narrower wraps its lines


class Format(Enum):
    """How results are printed."""

    TABLE = "table"
    WIDE = "wide"  # a table with all columns
    JSON = "json"
    YAML = "yaml"
    NAME = "name"  # ids or names alone, one per line


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: how a value is shown in it, and how where there is room (wide tables, one thing alone)."""

    title: str
    show: Callable[[Any], str]
    is_wide: bool = False
    is_number: bool = False
    full: Callable[[Any], str] | None = None

    def in_full(self) -> Column:
        """The same column where there is room."""
        return self if self.full is None else replace(self, show=self.full)


@dataclass(slots=True)
class Printer:
    """Prints results in one format. `clock` gives the present, for ages."""

    format: Format = Format.TABLE
    clock: Callable[[], float] = time.time

    @property
    def is_for_people(self) -> bool:
        """Whether a person, not a program, reads the result."""
        return self.format in (Format.TABLE, Format.WIDE)

    def rows(self, items: Sequence[object], columns: Sequence[Column], name: Callable[[Any], str]) -> None:
        """Print a list; `name` gives what `-o name` shows of an item."""
        if self.format is Format.NAME:
            for item in items:
                write_line(name(item))
        elif self.is_for_people:
            write_table(table_of(items, self._columns(columns)))
        else:
            self.document([plain(item) for item in items])

    def row(self, item: object, columns: Sequence[Column], name: Callable[[Any], str]) -> None:
        """Print one thing: as a table of one row for people, as itself for programs."""
        if self.is_for_people or self.format is Format.NAME:
            self.rows([item], columns, name)
        else:
            self.document(plain(item))

    def item(self, item: object, columns: Sequence[Column], name: Callable[[Any], str]) -> None:
        """Print one thing with all it has: one fact per line for people."""
        if self.is_for_people:
            self.facts({column.title.lower(): column.in_full().show(item) for column in columns})
        else:
            self.row(item, columns, name)

    def _columns(self, columns: Sequence[Column]) -> list[Column]:
        if self.format is Format.WIDE:
            return [column.in_full() for column in columns]
        return [column for column in columns if not column.is_wide]

    def facts(self, facts: Mapping[str, str]) -> None:
        """Print names and values, one pair per line, leaving out empty ones."""
        width = max((len(name) for name in facts), default=0)
        for name, value in facts.items():
            if value:
                write_line(f"{name.ljust(width)}  {value}")

    def document(self, value: object) -> None:
        """Print a plain value as JSON or YAML."""
        if self.format is Format.YAML:
            import yaml

            sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
        else:
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def record(self, value: object) -> None:
        """Print one record of a stream: a line of JSON, or a YAML document."""
        if self.format is Format.YAML:
            sys.stdout.write("---\n")
            self.document(plain(value))
        else:
            sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def done(self, sentence: str, facts: Mapping[str, object]) -> None:
        """Print that something was done: a sentence for people, facts for programs."""
        if self.is_for_people:
            write_line(sentence)
        elif self.format is not Format.NAME:
            self.document(plain(facts))

    def age(self, since: float) -> str:
        """How long ago a point in time was."""
        return duration_text(self.clock() - since) if since else ""

    def left(self, until: float) -> str:
        """How long it is to a point in time."""
        return duration_text(until - self.clock()) if until else ""


def plain(value: object) -> Any:
    """A value as JSON and YAML know it: dataclasses become objects, enums their values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if not field.name.startswith("_")}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def word(value: object) -> str:
    """A state or class as one word."""
    return str(plain(value))


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels as `key=value`, in order."""
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels))


def bytes_text(size_bytes: float) -> str:
    """A size with a binary suffix: 512, 1.5KiB, 64MiB."""
    return _scaled(size_bytes, 1024, ("", "KiB", "MiB", "GiB", "TiB"))


def count_text(count: float) -> str:
    """A count with a decimal suffix: 950, 12.3k, 7M."""
    return _scaled(count, 1000, ("", "k", "M", "G", "T"))


def count_of(count: int, noun: str) -> str:
    """A count with its noun: 1 page, 2 pages."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _scaled(value: float, base: int, suffixes: Sequence[str]) -> str:
    """The value in the largest unit that leaves it at least 1, with one decimal place."""
    power = 0
    while abs(value) >= base and power < len(suffixes) - 1:
        value, power = value / base, power + 1
    return f"{value:.1f}".removesuffix(".0") + suffixes[power]


def duration_text(seconds: float) -> str:
    """A duration in its two largest units: 12s, 3m5s, 2h10m, 4d3h."""
    whole = max(0, int(seconds))
    units = [("d", whole // 86400), ("h", whole // 3600 % 24), ("m", whole // 60 % 60), ("s", whole % 60)]
    while len(units) > 1 and not units[0][1]:
        units.pop(0)
    return "".join(f"{count}{unit}" for unit, count in units[:2] if count or len(units) == 1)


def seconds_text(seconds: float) -> str:
    """A duration at a glance: 40 ms, 4.2 s, 3m5s."""
    if seconds >= 60:
        return duration_text(seconds)
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def bar_text(parts: Sequence[tuple[str, int]], total: int, width: int) -> str:
    """A bar of `width` characters, each part drawn with its own, the smallest once; what is left is drawn as dots."""
    drawn = "".join(mark * max(1, round(width * size / total)) for mark, size in parts if size) if total else ""
    return drawn[:width].ljust(width, "·")


def shown(text: str) -> str:
    """Text with control characters made visible; line ends and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def write_text(text: str) -> None:
    """Write a piece of streamed text at once."""
    sys.stdout.write(shown(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def write_line(text: str) -> None:
    """Write one line of result."""
    sys.stdout.write(shown(text) + "\n")


def write_note(text: str) -> None:
    """Write one line for the person, beside the result."""
    sys.stderr.write(shown(text) + "\n")


def table_of(items: Sequence[object], columns: Sequence[Column]) -> Table:
    """A table without lines, as wide as its longest cells."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.is_number else "left", no_wrap=True)
    for item in items:
        table.add_row(*[Text(shown(column.show(item)).replace("\n", " ")) for column in columns])
    return table


def table_lines(items: Sequence[object], columns: Sequence[Column]) -> list[str]:
    """A table as plain lines."""
    from rich.console import Console

    console = Console(highlight=False, width=UNCUT_WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table_of(items, columns))
    return [line.rstrip() for line in captured.get().splitlines()]


def write_table(table: Table, stream: IO[str] | None = None) -> None:
    """Write a table, never cut; without a terminal it is plain text."""
    from rich.console import Console

    stream = stream or sys.stdout
    console = Console(file=stream, highlight=False, width=UNCUT_WIDTH, color_system="auto" if stream.isatty() else None)
    with console.capture() as captured:
        console.print(table)
    stream.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
