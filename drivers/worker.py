"""The main program of a worker: one process per device group, expendable, and patient with fronts that come and go.

    python -P -m drivers.worker --socket PATH {--device cpu0 --driver cpu | --instance cpu}
                                [--orphan-grace-s 15] [--log-level info] [--log-json]

    exit code   0   the front said so, SIGTERM, or the front stayed away for longer than the grace
                1   the driver broke, or no front was ever there
                2   the command line is wrong
                3   starting it again is of no use: no such driver or device, it fails the conformance suite, not enough memory, or the
                    front refused it

It connects to the front, never the other way, so the front that comes after a crash finds it where it left off. It does not ask to be
killed with its parent: under systemd the two are separate units, and elsewhere outliving the front is the point.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from drivers import registry, vetting
from drivers.errors import DriverError
from drivers.server import Ending, StopFlag
from drivers.station import Hopeless, Station, StationOptions

logger = logging.getLogger("drivers.worker")

SECRET_VARIABLE = "KERNELD_WORKER_SECRET"
EXIT_DONE = 0
EXIT_BROKEN = 1
EXIT_HOPELESS = 3
OOM_SCORE_ADJ = 500  # the front, at 0, is to outlive its workers


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def facts_of(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra`."""
    return {name: fact for name, fact in vars(record).items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line, as the front writes them."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's time, level, device, logger, message, facts, and traceback."""
        line = {"at": record.created, "level": record.levelname, "device": self._device, "logger": record.name}
        line |= {"message": record.getMessage(), **facts_of(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class LineFormatter(logging.Formatter):
    """One line per record: the message, then its facts as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback, if there is one, follows it."""
        line = super().format(record)
        facts = " ".join(f"{name}={json.dumps(fact, default=str)}" for name, fact in facts_of(record).items())
        head, newline, rest = line.partition("\n")
        return f"{head} {facts}".rstrip() + newline + rest


def main(arguments: list[str] | None = None) -> int:
    """Run a worker until it is done, and return its exit code."""
    parsed = parse(arguments)
    secret = os.environ.pop(SECRET_VARIABLE, "")
    options = StationOptions(parsed.socket, parsed.device, parsed.driver, parsed.orphan_grace_s, secret)
    _log_to_stderr(options.device, parsed.log_level, is_json=parsed.log_json)
    _prefer_to_die()
    try:
        if parsed.check_limit_s > 0:  # before signals are ours: SIGTERM ends it at once
            vetting.require_conforming(options.driver, parsed.check_limit_s)
    except DriverError as error:
        return _hopeless(error, parsed.problem_file)
    stop = StopFlag()

    def note(_signum: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    try:
        station = Station(options, stop)
        ending = station.run()
        if ending is not Ending.BROKEN:
            station.close()
    except (DriverError, Hopeless) as error:
        return _hopeless(error, parsed.problem_file)
    logger.info("Exit", extra={"ending": ending.value})
    is_never_served = ending is Ending.GRACE_OVER and not station.was_opened
    return EXIT_BROKEN if ending is Ending.BROKEN or is_never_served else EXIT_DONE


def _hopeless(error: Exception, problem_file: Path | None) -> int:
    """Say why, in the log and to whoever reads the file."""
    logger.error("Cannot serve", extra={"reason": str(error)})
    if problem_file is not None:
        try:
            problem_file.write_text(str(error), encoding="utf-8")
        except OSError as lost:
            logger.warning("Problem file not written", extra={"reason": str(lost)})
    return EXIT_HOPELESS


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line. Raises: SystemExit, if it is wrong."""
    parser = argparse.ArgumentParser(prog="drivers.worker", description="Serve one device to the kerneld front behind a socket.")
    parser.add_argument("--socket", required=True, help="unix socket of the front")
    parser.add_argument("--device", default="", help="name of the device group, such as cpu0")
    parser.add_argument("--driver", default="", help=f"one of: {', '.join(name for name, _ in registry.available())}")
    parser.add_argument(
        "--instance", default="", help="both as a unit of systemd names them: DRIVER, whose device is DRIVER0, or DRIVER:DEVICE"
    )
    parser.add_argument("--orphan-grace-s", type=float, default=15.0, help="how long to wait for a front before exiting")
    parser.add_argument(
        "--check-limit-s",
        type=float,
        default=vetting.LIMIT_S,
        help="how long the conformance suite may take on a driver of another distribution; 0: it is trusted, and not checked",
    )
    parser.add_argument("--problem-file", type=Path, help="where to write why it could not serve")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="least severe lines to write")
    parser.add_argument("--log-json", action="store_true", help="write lines as JSON objects")
    parsed = parser.parse_args(arguments)
    if parsed.instance:
        parsed.driver, _, parsed.device = parsed.instance.partition(":")
        parsed.device = parsed.device or f"{parsed.driver}0"
    if not (parsed.device and parsed.driver):
        parser.error("give --device and --driver, or --instance")
    return parsed


def _log_to_stderr(device: str, level: str, *, is_json: bool) -> None:
    line = LineFormatter(f"%(asctime)s %(levelname)s {device} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(device) if is_json else line)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _prefer_to_die() -> None:
    """Tell the system to take this process before the front when memory is short; raising one's own score needs no privilege."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except OSError as error:
        logger.warning("Memory score not set", extra={"reason": str(error)})


if __name__ == "__main__":
    exit_code = main()
    logging.shutdown()
    # Not sys.exit: a load still on its way in the side thread must neither hold the process nor run on while the interpreter is torn down.
    os._exit(exit_code)
