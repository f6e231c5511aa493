"""The conformance suite: what every driver has to do, tried on one of them.

    python -m drivers.conformance NAME [--model PATH]

NAME is a driver of `drivers.registry`. The suite makes its own tiny models; with --model the driver runs that one instead. The exit code
is 0 if every check passed. Authors of drivers can call `run` from their tests, or each check of `CHECKS` on a `Subject`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from drivers import conformance_adapters, conformance_life, conformance_pages, conformance_rows, conformance_weights, registry
from drivers.conformance_bench import Nonconforming, Subject
from drivers.conformance_models import LAYERS, write_adapter, write_model, write_refused_models
from drivers.errors import DriverError, DriverNotFound, DriverUnavailable

Check = Callable[[Subject], None]

CHECKS: tuple[Check, ...] = (
    *conformance_life.CHECKS,
    *conformance_rows.CHECKS,
    *conformance_pages.CHECKS,
    *conformance_adapters.CHECKS,
    *conformance_weights.CHECKS,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one check; `complaint` is empty if it passed."""

    name: str
    rule: str
    complaint: str
    seconds: float


@contextmanager
def subject_of(name: str, model_path: Path | None = None) -> Iterator[Subject]:
    """Give the driver of that name with its models, which are gone afterwards. Raises: DriverNotFound, DriverUnavailable."""
    registry.create(name).probe()
    with tempfile.TemporaryDirectory(prefix="kerneld-conformance-") as folder:
        own = write_model(Path(folder) / "model")
        refused = write_refused_models(Path(folder) / "refused")
        if model_path is not None:
            yield Subject(partial(registry.create, name), model_path, refused)
            return
        adapter, other = write_adapter(Path(folder) / "adapter"), write_adapter(Path(folder) / "other", layers=LAYERS + 1)
        yield Subject(partial(registry.create, name), own, refused, adapter, other)


def run(subject: Subject) -> Iterator[Outcome]:
    """Give the outcome of every check, as it comes."""
    for check in CHECKS:
        began = time.monotonic()
        complaint = ""
        try:
            check(subject)
        except Nonconforming as error:
            complaint = f"not so: {error}"
        except DriverError as error:
            complaint = f"{type(error).__name__}: {error}"
        yield Outcome(check.__name__, (check.__doc__ or "").strip(), complaint, time.monotonic() - began)


def main(arguments: list[str] | None = None) -> int:
    """Run the suite, print a report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="drivers.conformance", description="Check a driver against the contract.")
    parser.add_argument("name", help="name of a driver")
    parser.add_argument("--model", type=Path, help="model directory to run, instead of the tiny one")
    parsed = parser.parse_args(arguments)
    try:
        with subject_of(parsed.name, parsed.model) as subject:
            outcomes = [_report(outcome) for outcome in run(subject)]
    except (DriverNotFound, DriverUnavailable) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    num_failed = sum(bool(outcome.complaint) for outcome in outcomes)
    sys.stdout.write(f"{parsed.name}: {len(outcomes) - num_failed} of {len(outcomes)} checks passed\n")
    return 1 if num_failed else 0


def _report(outcome: Outcome) -> Outcome:
    verdict = "FAILED" if outcome.complaint else "ok"
    sys.stdout.write(f"{verdict:6} {outcome.seconds:6.2f} s  {outcome.name}\n")
    if outcome.complaint:
        sys.stdout.write(f"       {outcome.rule}\n       {outcome.complaint}\n")
    return outcome


if __name__ == "__main__":
    sys.exit(main())
