"""How long does a person wait for help? Start to end of `--help`, each in a process of its own. Goal: at most 150 ms."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "kernelctl --help": ["-m", "cli.main", "--help"],
    "kernelctl ctx --help": ["-m", "cli.main", "ctx", "--help"],
    "kerneld --help": ["-m", "cli.daemon", "--help"],
}
GOAL_MS = 150.0


def milliseconds(arguments: list[str], repeats: int) -> list[float]:
    """Wall time of each of `repeats` runs."""
    took = []
    for _ in range(repeats):
        started_at = time.perf_counter()
        subprocess.run([sys.executable, "-P", *arguments], check=True, stdout=subprocess.DEVNULL)
        took.append((time.perf_counter() - started_at) * 1e3)
    return took


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    figures = []
    print(f"{'command':<24}{'median ms':>12}{'max ms':>10}")
    for name, arguments in COMMANDS.items():
        milliseconds(arguments, 1)  # bytecode is written by the first run
        took = milliseconds(arguments, options.repeats)
        figures.append({"command": name, "median_ms": statistics.median(took), "max_ms": max(took), "goal_ms": GOAL_MS})
        print(f"{name:<24}{statistics.median(took):>12.1f}{max(took):>10.1f}")
    if options.json is not None:
        options.json.write_text(json.dumps({"question": "help", "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
