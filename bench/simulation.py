"""What do fair shares do that first come first served does not, on the paper's workloads, under virtual time?

fig3, 6, 7, 8   accumulated gap between two clients: FCFS beside fair shares, at least 10x; throughput of 3 to 6 within 1 %
fig4, fig5      mean time to the first token of those who ask for less than their part, beside a hog: <= 5 s for figure 5
fig10           the worst window of three phases of demand
zipf            27 clients: worst window <= 0.5x FCFS, throughput >= 0.99x, nobody is rejected
tenants64       64 tenants over 10 virtual minutes under both schedulers: <= 60 s of this machine
"""

from __future__ import annotations

import time

from bench.report import Figure, at_least, at_most, json_path, publish
from kerneld.simulation.measures import Measures
from kerneld.simulation.presets import PRESETS
from kerneld.simulation.run import simulate
from kerneld.simulation.world import Scheduling

GAPS = ("fig3", "fig6", "fig7", "fig8")
EQUAL_SHAPES = ("fig3", "fig4", "fig5", "fig6")
LIGHT = {"fig4": "client1", "fig5": "light"}


def both(name: str) -> tuple[Measures, Measures]:
    """A preset under FCFS and under fair shares."""
    workload = PRESETS[name]()
    return simulate(workload, Scheduling.FCFS).measures, simulate(workload, Scheduling.HVTC).measures


def figures_of(name: str) -> list[Figure]:
    """The figures of one preset."""
    began = time.perf_counter()
    fcfs, fair = both(name)
    wall_s = time.perf_counter() - began
    figures: list[Figure] = []
    if name in GAPS:
        note = f"{fcfs.max_gap:,.0f} and {fair.max_gap:,.0f}"
        figures.append(at_least(f"{name}: gap of FCFS beside that of fair shares", fcfs.max_gap / fair.max_gap, 10, "x", note))
    if name in EQUAL_SHAPES:
        change = 100 * (fair.tokens_per_s / fcfs.tokens_per_s - 1)
        figures.append(at_most(f"{name}: throughput changes by", abs(change), 1, "%", f"{fcfs.tokens_per_s:.0f} tok/s with FCFS"))
    else:
        figures.append(Figure(f"{name}: throughput", fair.tokens_per_s, "tok/s", note=f"FCFS {fcfs.tokens_per_s:.0f}"))
    return figures + light_figures(name, fcfs, fair) + window_figures(name, fcfs, fair) + [wall_figure(name, wall_s)]


def light_figures(name: str, fcfs: Measures, fair: Measures) -> list[Figure]:
    """How long the light client of a preset waits."""
    if name not in LIGHT:
        return []
    what, before, after = (
        f"{name}: mean time to first token of the light client",
        *(run.mean_ttft_s[LIGHT[name]] or 0.0 for run in (fcfs, fair)),
    )
    note = f"FCFS {before:.1f}"
    return [at_most(what, after, 5, "s", note) if name == "fig5" else Figure(what, after, "s", note=note)]


def window_figures(name: str, fcfs: Measures, fair: Measures) -> list[Figure]:
    """The worst window of a preset."""
    ratio = fair.max_diff / fcfs.max_diff
    note = f"{fcfs.max_diff:,.0f} and {fair.max_diff:,.0f} a second"
    if name != "zipf":
        return [Figure(f"{name}: worst window beside that of FCFS", ratio, "x", note=note)]
    return [
        at_most(f"{name}: worst window beside that of FCFS", ratio, 0.5, "x", note),
        at_least(f"{name}: throughput beside that of FCFS", fair.tokens_per_s / fcfs.tokens_per_s, 0.99, "x"),
        at_most(f"{name}: rejected", fair.rejected, 0, "requests"),
    ]


def wall_figure(name: str, wall_s: float) -> Figure:
    """How long both runs of a preset took."""
    what = f"{name}: both runs took"
    return at_most(what, wall_s, 60, "s") if name == "tenants64" else Figure(what, wall_s, "s")


def main() -> None:
    """Measure, print and keep."""
    figures = [figure for name in PRESETS for figure in figures_of(name)]
    publish("simulation", "Fair shares beside first come first served, in virtual time", figures, json_path())


if __name__ == "__main__":
    main()
