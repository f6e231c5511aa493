"""Whether a driver of another distribution may run here: before its first use it has to pass the conformance suite.

    known? --no--> the suite, in a process of its own --> remembered --> passed: run    failed: refused, with the report
      +-----yes----------------------------------------------^

A driver that crashes, hangs, or ends the process is refused like one that fails a check. What came of it is remembered in the cache folder
of the user, under the hash of the distribution's files, of Python, and of the suite: a plugin or a kerneld that changes is looked at anew.

Invariants
1. Nothing is remembered in a folder, or believed of one, that anybody else may write to; without such a folder the suite runs every time.
2. A pass is good until something that went into its name changes; a failure for `FAILED_FOR_S`, as the device may have been busy.
3. The suite is not longer there than the process that asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

from drivers import registry
from drivers.contract import CONTRACT_VERSION
from drivers.errors import DriverUnavailable
from drivers.native.build import BuildFailed, library_folder

logger = logging.getLogger(__name__)

LIMIT_S = 300.0
FAILED_FOR_S = 600.0
MOST_COMPLAINTS = 3  # in a sentence
HEARD_BYTES = 400  # of what a suite that broke down said last


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a look at a driver."""

    distribution: str  # with its version
    complaint: str = ""  # "": it conforms
    is_remembered: bool = False


def require_conforming(name: str, limit_s: float = LIMIT_S) -> None:
    """Let a driver through that is built in, or that conforms. Raises: DriverUnavailable, with the report."""
    verdict = verdict_on(name, limit_s)
    if verdict is not None and verdict.complaint:
        raise DriverUnavailable(refusal(name, verdict))


def refusal(name: str, verdict: Verdict) -> str:
    """Why a driver does not run, and what to do."""
    return (
        f"The driver {name} of {verdict.distribution} is refused by the conformance suite: {verdict.complaint}. "
        f"`python -P -m drivers.conformance {name}` reports it all. Install a release that passes, or set drivers.trust to run it as it is."
    )


def verdict_on(name: str, limit_s: float = LIMIT_S, *, anew: bool = False) -> Verdict | None:
    """What is known of a driver, or found out now; `anew`: found out now. None of one that no other distribution offers."""
    point = registry.entry_point_of(name)
    if point is None:
        return None
    distribution = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
    record = _record_of(point)
    if record is not None and not anew and (told := _read(record)) is not None:
        return Verdict(distribution, told, is_remembered=True)
    logger.info("A driver is checked before its first use", extra={"driver": name, "distribution": distribution, "limit_s": limit_s})
    complaint = _try(name, limit_s)
    if record is not None:
        _write(record, complaint)
    return Verdict(distribution, complaint)


# ------------------------------------------------------------------------------------------------------------------------------ the suite


def _try(name: str, limit_s: float) -> str:
    """Run the suite; answers what it complains of."""
    command = [sys.executable, "-P", "-m", "drivers.conformance", name, "--json", f"--with-parent={os.getpid()}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as wailed:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=wailed, env=environment, process_group=0)
        try:
            process.wait(limit_s)
            ending = ""
        except subprocess.TimeoutExpired:
            ending = f"it was not done after {limit_s:.0f} s"
        finally:
            _end(process)
        said.seek(0)
        wailed.seek(0)
        return _complaint(said.read().decode(errors="replace"), ending or _broken(process, wailed.read()))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of the suite stays behind, children of the driver included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _broken(process: subprocess.Popen[bytes], wailed: bytes) -> str:
    tail = " ".join(wailed.decode(errors="replace").split())[-HEARD_BYTES:]
    ending = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    return f"the process ended with {ending}{f' ({tail})' if tail else ''}"


def _complaint(said: str, broken: str) -> str:
    """What lines of a suite come to; `broken` says how it ended if they do not."""
    complaints: list[str] = []
    begun = ""
    for line in said.splitlines():
        try:
            told = json.loads(line)
        except ValueError:  # the driver writes to where the report goes
            continue
        if not isinstance(told, dict):
            continue
        if "error" in told:
            return str(told["error"]).rstrip(".")
        if "passed" in told:
            return _list(complaints, f"of {told['of']} checks")
        begun = str(told.get("begins", begun))
        if told.get("complaint"):
            complaints.append(f"{told['name']} ({told['complaint']})")
    return f"{broken}, in {begun}" if begun else broken


def _list(complaints: list[str], among: str) -> str:
    if not complaints:
        return ""
    more = f" and {len(complaints) - MOST_COMPLAINTS} more" if len(complaints) > MOST_COMPLAINTS else ""
    return f"{len(complaints)} {among} failed: {'; '.join(complaints[:MOST_COMPLAINTS])}{more}"


# ----------------------------------------------------------------------------------------------------------------------------- the memory


def _record_of(point: EntryPoint) -> Path | None:
    """Where it is remembered what came of this driver as it is now; None, if there is no place that is ours alone."""
    try:
        folder = library_folder().parent / "conformance"
        folder.mkdir(mode=0o700, exist_ok=True)
        made_of = hashlib.sha256("\0".join([point.name, point.value, sys.version, str(CONTRACT_VERSION)]).encode())
        suite = {*Path(__file__).parent.glob("conformance*.py"), Path(__file__).with_name("contract.py")}
        for path in sorted(path for path in {*_files_of(point), *suite} if path.is_file() and path.suffix != ".pyc"):
            made_of.update(b"\0" + str(path).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    except (BuildFailed, OSError) as error:
        logger.warning("What the conformance suite says is not remembered", extra={"driver": point.name, "reason": str(error)})
        return None
    return folder / f"{made_of.hexdigest()[:32]}.json"


def _files_of(point: EntryPoint) -> Iterator[Path]:
    """The files of its distribution, and those of its module, which may be elsewhere (an editable installation)."""
    if point.dist is not None:
        for file in point.dist.files or ():
            yield Path(str(point.dist.locate_file(file)))
    try:
        found = importlib.util.find_spec(point.module.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    if found is not None and found.submodule_search_locations:
        for folder in found.submodule_search_locations:
            yield from Path(folder).rglob("*")
    elif found is not None and found.origin is not None:
        yield Path(found.origin)


def _read(record: Path) -> str | None:
    """The complaint that is remembered; None, if nothing is, or nothing that is good any more."""
    try:
        told = json.loads(record.read_text())
        complaint, at = str(told["complaint"]), float(told["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return complaint if not complaint or 0 <= time.time() - at < FAILED_FOR_S else None


def _write(record: Path, complaint: str) -> None:
    try:
        with tempfile.NamedTemporaryFile("w", dir=record.parent, delete=False) as file:
            json.dump({"complaint": complaint, "at": time.time()}, file)
        Path(file.name).replace(record)
    except OSError as error:
        logger.warning("What the conformance suite says is not remembered", extra={"reason": str(error)})
