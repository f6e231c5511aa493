"""How long does a person wait for help? Start to end of `--help`, each in a process of its own. Goal: at most 150 ms."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from bench.report import Figure, at_most, json_path, publish

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "kernelctl --help": ["-m", "cli.main", "--help"],
    "kernelctl ctx --help": ["-m", "cli.main", "ctx", "--help"],
    "kerneld --help": ["-m", "cli.daemon", "--help"],
}
GOAL_MS = 150.0
REPEATS = 20


def milliseconds(arguments: list[str], repeats: int) -> list[float]:
    """Wall time of each of `repeats` runs."""
    took = []
    for _ in range(repeats):
        started_at = time.perf_counter()
        subprocess.run([sys.executable, "-P", *arguments], check=True, stdout=subprocess.DEVNULL)
        took.append((time.perf_counter() - started_at) * 1e3)
    return took


def main() -> None:
    """Measure, print and keep."""
    figures = []
    for name, arguments in COMMANDS.items():
        milliseconds(arguments, 1)  # bytecode is written by the first run
        took = milliseconds(arguments, REPEATS)
        note = f"max {max(took):.0f} ms"
        if "--help" in arguments:
            figures.append(at_most(name, statistics.median(took), GOAL_MS, "ms", note))
        else:
            figures.append(Figure(name, statistics.median(took), "ms", note=note))
    publish("cli", "Help", figures, json_path())


if __name__ == "__main__":
    main()
