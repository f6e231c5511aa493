"""Findings of a checkup: what was looked at, how it is, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from cli.render import Column, Printer


class Level(Enum):
    """How a thing is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice` says what to do where it is not ok."""

    name: str
    level: Level
    detail: str
    advice: str = ""


COLUMNS = (
    Column("", lambda f: f.level.value),
    Column("CHECK", lambda f: f.name),
    Column("FOUND", lambda f: f.detail),
    Column("WHAT TO DO", lambda f: f.advice),
)


def show_findings(printer: Printer, findings: Sequence[Finding]) -> None:
    """Print findings in the order they were made."""
    printer.rows(findings, COLUMNS, name=lambda f: f"{f.level.value} {f.name}")
