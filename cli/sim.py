"""`kerneld sim`: a workload under virtual time, once first come first served and once by fair shares."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cli.render import Column, Printer, table_of, write_line, write_table
from kerneld.simulation.plots import write_plots
from kerneld.simulation.presets import PRESETS
from kerneld.simulation.reading import read_workload
from kerneld.simulation.records import write_records
from kerneld.simulation.replay import Replay
from kerneld.simulation.run import Run, TenantFigures, simulate
from kerneld.simulation.workload import Workload, WorkloadInvalid
from kerneld.simulation.world import Scheduling

HOW_TO_PLOT = "Plots need matplotlib: pip install 'kerneld[sim]'."


def load_workload(target: str) -> Workload:
    """The workload that a person names: a preset, a TOML file, or an event log. Raises: click.UsageError."""
    if target in PRESETS:
        return PRESETS[target]()
    path = Path(target)
    try:
        if path.suffix == ".jsonl":
            return replayed(path)
        if not path.exists():
            raise click.UsageError(f"{target!r} is neither a file nor one of the presets: {', '.join(PRESETS)}.")
        return read_workload(path)
    except WorkloadInvalid as error:
        raise click.UsageError(str(error)) from error


def replayed(path: Path) -> Workload:
    """The workload of an event log, on the default device. Raises: WorkloadInvalid."""
    replay = Replay.read(path)
    if replay.num_missed:
        click.echo(f"{path}: {replay.num_missed} events are missing from this log.", err=True)
    return Workload(path.stem, replay.duration_s, replay.tenants(), jobs=replay.jobs)


def run_and_show(workload: Workload, printer: Printer, records: Path | None, plots: Path | None) -> None:
    """Run a workload under both schedulers, print what came of it, and write what is asked for. Raises: click.ClickException."""
    runs = [simulate(workload, scheduling) for scheduling in Scheduling]
    try:
        if records is not None:
            with records.open("w", encoding="utf-8") as file:
                for run in runs:
                    write_records(run.records, file)
        if printer.is_for_people:
            show(workload, runs)
        else:
            printer.document({"schedulers": {run.scheduling.value: dataclasses.asdict(run.measures) for run in runs}})
        if plots is not None:
            draw(runs, plots)
    except BrokenPipeError:  # the reader left: nobody is told
        raise
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}.") from error


def draw(runs: Sequence[Run], folder: Path) -> None:
    """Write the plots, or say what is missing for them."""
    try:
        paths = write_plots(runs, folder)
    except ImportError:
        click.echo(HOW_TO_PLOT, err=True)
        return
    click.echo(f"Plots: {', '.join(str(path) for path in paths)}", err=True)


def show(workload: Workload, runs: Sequence[Run]) -> None:
    """Print the tables for people."""
    device = workload.device
    write_line(f"{workload.name}: {workload.duration_s:g} virtual seconds, a pool of {device.pool_tokens} tokens, seed {workload.seed}")
    write_line("")
    write_table(table_of(runs, SCHEDULER_COLUMNS))
    write_line("")
    write_table(table_of([figures for run in runs for figures in run.tenants()], TENANT_COLUMNS))
    sys.stdout.flush()


def number(value: float | None, digits: int = 2) -> str:
    """A figure in a table, thousands apart; empty where there is none."""
    return "" if value is None else f"{value:,.{digits}f}"


def _of(figures: TenantFigures, name: str, digits: int) -> str:
    value: float | None = getattr(figures, name)
    return number(value, digits)


SCHEDULER_COLUMNS = (
    Column("SCHEDULER", lambda run: run.scheduling.value),
    Column("MAX GAP", lambda run: number(run.measures.max_gap, 0), is_number=True),
    Column("MAX DIFF", lambda run: number(run.measures.max_diff, 1), is_number=True),
    Column("TOKENS/S", lambda run: number(run.measures.tokens_per_s, 1), is_number=True),
    Column("REJECTED", lambda run: str(run.measures.rejected), is_number=True),
    Column("STEPS", lambda run: str(run.num_steps), is_number=True),
    Column("BUSY", lambda run: f"{run.busy_s / run.books.duration_s:.0%}", is_number=True),
)
TENANT_COLUMNS = (
    Column("TENANT", lambda figures: figures.tenant),
    Column("SCHEDULER", lambda figures: figures.scheduler),
    Column("SERVED", lambda figures: f"{figures.num_served}/{figures.num_requests}", is_number=True),
    Column("TTFT MEAN", lambda figures: _of(figures, "mean_ttft_s", 2), is_number=True),
    Column("P50", lambda figures: _of(figures, "p50_ttft_s", 2), is_number=True),
    Column("P99", lambda figures: _of(figures, "p99_ttft_s", 2), is_number=True),
    Column("SERVICE", lambda figures: _of(figures, "service", 0), is_number=True),
    Column("SHARE", lambda figures: f"{figures.share:.1%}", is_number=True),
    Column("WORST LAG", lambda figures: _of(figures, "worst_lag", 0), is_number=True),
)
