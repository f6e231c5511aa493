"""How every question prints and keeps its figures; run as a program, it joins what was kept into RESULTS.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "RESULTS.md"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number beside what it should be. `is_met` is None where there is no goal."""

    what: str
    value: float
    unit: str
    goal: str = ""
    is_met: bool | None = None
    note: str = ""


def at_most(what: str, value: float, limit: float, unit: str, note: str = "") -> Figure:
    """A figure that should not be above a limit."""
    return Figure(what, value, unit, f"<= {limit:g}", value <= limit, note)


def at_least(what: str, value: float, limit: float, unit: str, note: str = "") -> Figure:
    """A figure that should not be below a limit."""
    return Figure(what, value, unit, f">= {limit:g}", value >= limit, note)


def publish(question: str, title: str, figures: Sequence[Figure], path: Path | None) -> None:
    """Print the figures of a question as a table, and keep them where asked."""
    print(f"\n{title}")
    for line in _table(figures):
        print(line)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"question": question, "title": title, "date": date.today().isoformat(), "machine": machine()}
        path.write_text(json.dumps({**kept, "figures": [asdict(figure) for figure in figures]}, indent=2) + "\n")


def json_path() -> Path | None:
    """The file named by --json, if any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    return parser.parse_args().json


def machine() -> str:
    """What the figures were taken on."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "grpcio"))
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {versions}"


def _table(figures: Sequence[Figure]) -> list[str]:
    lines = ["| figure | value | goal | met | note |", "| --- | --- | --- | --- | --- |"]
    for figure in figures:
        met = "" if figure.is_met is None else "yes" if figure.is_met else "**no**"
        lines.append(f"| {figure.what} | {figure.value:.4g} {figure.unit} | {figure.goal} | {met} | {figure.note} |")
    return lines


def main(folder: Path) -> None:
    """Join the kept figures of all questions into RESULTS.md."""
    parts = [
        "# Results",
        "",
        "Written by `make bench`; medians of one run. Ratios carry over to other machines, absolute figures do not.",
        "",
    ]
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text())
        parts += [f"## {kept['title']}", "", f"{kept['date']}, {kept['machine']}.", ""]
        parts += [*_table([Figure(**figure) for figure in kept["figures"]]), ""]
    RESULTS.write_text("\n".join(parts))
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
