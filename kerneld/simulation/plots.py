"""Plots of a workload's runs: service over time, queueing delay, and lag, per tenant, one figure for each scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kerneld.simulation.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 400
_MAX_LEGEND = 12  # tenants; of more, none is named


def write_plots(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write every plot into a folder, which is made, and give their paths. Raises: ImportError, without matplotlib; OSError."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, label, draw in (
        ("service", "accumulated service (input token 1, output token 2)", _draw_service),
        ("delay", "seconds to the first token, by arrival", _draw_delay),
        ("lag", "service behind the best served, by claim", _draw_lag),
    ):
        figure, columns = pyplot.subplots(
            1, len(runs), figsize=(6 * len(runs), 4), squeeze=False, sharex=True, sharey=True, layout="constrained"
        )
        for run, axes in zip(runs, columns[0], strict=True):
            draw(run, axes)
            axes.set(title=run.scheduling.value, xlabel="seconds")
        columns[0][0].set(ylabel=label, xlim=(0.0, runs[0].books.duration_s))
        if len(runs[0].books.claims) <= _MAX_LEGEND:
            columns[0][-1].legend()
        path = folder / f"{name}.png"
        figure.savefig(path)
        pyplot.close(figure)
        paths.append(path)
    return paths


def _draw_service(run: Run, axes: Axes) -> None:
    instants = np.linspace(0.0, run.books.duration_s, _POINTS)
    for tenant, curve in run.books.service.items():
        axes.plot(instants, curve.at(instants), label=tenant)


def _draw_delay(run: Run, axes: Axes) -> None:
    for tenant, records in run.books.of.items():
        served = [record for record in records if record.first_token_s is not None]
        waits = [record.first_token_s - record.arrival_s for record in served if record.first_token_s is not None]
        axes.plot([record.arrival_s for record in served], waits, label=tenant)


def _draw_lag(run: Run, axes: Axes) -> None:
    books = run.books
    instants = np.linspace(0.0, books.duration_s, _POINTS)
    levels = {tenant: curve.at(instants) / books.claims[tenant] for tenant, curve in books.service.items()}
    best = np.max(np.array(list(levels.values())), axis=0)
    for tenant, level in levels.items():
        axes.plot(instants, best - level, label=tenant)
