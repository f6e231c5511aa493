"""The conformance suite: what every driver has to do, tried on one of them.

    python -P -m drivers.conformance NAME [--model PATH] [--json]

    exit code   0   every check passed
                1   some did not
                2   there is no such driver, or it does not run here

NAME is a driver of `drivers.registry`. The suite makes its own tiny models; with --model the driver runs that one instead. With --json,
each line is an object: {"begins": check}, then the outcome of it; last {"passed": n, "of": m}, or {"error": why the suite did not begin}.
Authors of drivers can call `run` from their tests, or each check of `CHECKS` on a `Subject`. Any error that a driver raises is a complaint
about it: its authors are strangers, and the next check has a driver of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from drivers import (
    conformance_adapters,
    conformance_life,
    conformance_pages,
    conformance_promises,
    conformance_rows,
    conformance_weights,
    registry,
)
from drivers.conformance_bench import Nonconforming, Subject
from drivers.conformance_models import LAYERS, write_adapter, write_model, write_refused_models
from drivers.errors import DriverNotFound, DriverUnavailable

Check = Callable[[Subject], None]

CHECKS: tuple[Check, ...] = (
    *conformance_life.CHECKS,
    *conformance_rows.CHECKS,
    *conformance_pages.CHECKS,
    *conformance_adapters.CHECKS,
    *conformance_weights.CHECKS,
    *conformance_promises.CHECKS,
)
PR_SET_PDEATHSIG = 1  # sys/prctl.h


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
    registry.probe(name, registry.create(name))
    with tempfile.TemporaryDirectory(prefix="kerneld-conformance-") as folder:
        own = write_model(Path(folder) / "model")
        refused = write_refused_models(Path(folder) / "refused")
        if model_path is not None:
            yield Subject(partial(registry.create, name), model_path, refused)
            return
        adapter, other = write_adapter(Path(folder) / "adapter"), write_adapter(Path(folder) / "other", layers=LAYERS + 1)
        yield Subject(partial(registry.create, name), own, refused, adapter, other)


def run(subject: Subject, begins: Callable[[str], None] = lambda _name: None) -> Iterator[Outcome]:
    """Give the outcome of every check, as it comes; `begins` hears of each before."""
    for check in CHECKS:
        begins(check.__name__)
        began = time.monotonic()
        complaint = ""
        try:
            check(subject)
        except Nonconforming as error:
            complaint = f"not so: {error}"
        except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything; that is what it is looked at for
            complaint = f"{type(error).__name__}: {error}"
        yield Outcome(check.__name__, " ".join((check.__doc__ or "").split()), complaint, time.monotonic() - began)


def main(arguments: list[str] | None = None) -> int:
    """Run the suite, print a report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="drivers.conformance", description="Check a driver against the contract.")
    parser.add_argument("name", help="name of a driver")
    parser.add_argument("--model", type=Path, help="model directory to run, instead of the tiny one")
    parser.add_argument("--json", action="store_true", help="write lines of JSON")
    parser.add_argument("--with-parent", type=int, default=0, help="process that started it: end when that ends")
    parsed = parser.parse_args(arguments)
    if parsed.with_parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parsed.with_parent:
            return 2  # it ended before
    report = _JsonReport() if parsed.json else _TextReport(parsed.name)
    try:
        with subject_of(parsed.name, parsed.model) as subject:
            outcomes = [report.outcome(outcome) for outcome in run(subject, report.begins)]
    except (DriverNotFound, DriverUnavailable) as error:
        report.error(error.detail)
        return 2
    except Exception as error:  # noqa: BLE001 - the same: it was imported, made and asked what it can
        report.error(f"{parsed.name} cannot be made and probed: {type(error).__name__}: {error}")
        return 2
    num_failed = sum(bool(outcome.complaint) for outcome in outcomes)
    report.end(len(outcomes) - num_failed, len(outcomes))
    return 1 if num_failed else 0


class _TextReport:
    """A line for each check, and more where it complains."""

    def __init__(self, name: str) -> None:
        self._name = name

    def begins(self, _name: str) -> None:
        """Nothing is said of that."""

    def outcome(self, outcome: Outcome) -> Outcome:
        verdict = "FAILED" if outcome.complaint else "ok"
        sys.stdout.write(f"{verdict:6} {outcome.seconds:6.2f} s  {outcome.name}\n")
        if outcome.complaint:
            sys.stdout.write(f"       {outcome.rule}\n       {outcome.complaint}\n")
        return outcome

    def error(self, why: str) -> None:
        sys.stderr.write(f"{why}\n")

    def end(self, passed: int, of: int) -> None:
        sys.stdout.write(f"{self._name}: {passed} of {of} checks passed\n")


class _JsonReport(_TextReport):
    """Objects, each written at once: if the suite is ended, the last line says where."""

    def __init__(self) -> None:
        super().__init__("")

    def begins(self, name: str) -> None:
        self._write(begins=name)

    def outcome(self, outcome: Outcome) -> Outcome:
        self._write(**asdict(outcome))
        return outcome

    def error(self, why: str) -> None:
        self._write(error=why)

    def end(self, passed: int, of: int) -> None:
        self._write(passed=passed, of=of)

    def _write(self, **fields: object) -> None:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
