"""Named places where a test makes the daemon die, or the disk fail.

    KERNELD_FAILPOINTS="journal.append.after_write=kill,after:2; store.change.before=error:ENOSPC"

Points are separated by semicolons. `kill` ends the process with SIGKILL, `error:NAME` raises OSError with that errno, `after:N` lets the
first N hits pass, `times:N` lets those pass that come after N failures. The environment is read once, when this module is imported, and
nothing else can arm a point: a daemon that was started without the variable has none. A test in the same process may look on (`watched`)
and let something else happen at each point.
"""

from __future__ import annotations

import errno
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

VARIABLE = "KERNELD_FAILPOINTS"

NAMES = frozenset(
    {
        "audit.append.after_write",
        "audit.append.before_write",
        "audit.head.after_rename",
        "audit.rotate.after_rename",
        "image.collect.before_unlink",
        "image.delete.after_manifest",
        "image.delete.before_manifest",
        "image.manifest.after_link",
        "image.manifest.after_sync",
        "image.manifest.before_write",
        "image.page.after_rename",
        "image.page.after_sync",
        "image.page.before_write",
        "journal.append.after_write",
        "journal.append.before_write",
        "journal.reserve.before_allocate",
        "journal.segment.after_rename",
        "journal.segment.after_sync",
        "journal.segment.before_write",
        "journal.snapshot.after_delete",
        "journal.snapshot.after_rename",
        "journal.snapshot.after_sync",
        "journal.snapshot.before_write",
        "journal.sync.after",
        "journal.sync.before",
        "store.change.after",
        "store.change.before",
        "store.commit.after",
        "store.commit.before",
        "store.migrate.before_commit",
        "usage.write.between",
    }
)


@dataclass(slots=True)
class _Failure:
    """What an armed point does."""

    error_number: int  # 0: kill
    passes_left: int = 0  # hits that go by first
    times_left: float = math.inf


def hit(name: str) -> None:
    """Pass the point `name`. Does nothing unless the environment armed it, or a test looks on."""
    for watcher in _watchers:
        watcher(name)
    if _armed:
        _fire(name)


@contextmanager
def watched(watcher: Callable[[str], None]) -> Iterator[None]:
    """Have `watcher` called with the name of every point that is passed, on the thread that passes it."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def parse(text: str) -> dict[str, _Failure]:
    """Return what a value of the environment variable arms. Raises: ValueError, naming the part that is wrong."""
    armed: dict[str, _Failure] = {}
    for point in filter(None, (part.strip() for part in text.split(";"))):
        name, _, actions = point.partition("=")
        if name not in NAMES:
            raise ValueError(f"{VARIABLE}: there is no failpoint {name!r}")
        armed[name] = _parse_actions(point, actions)
    return armed


def _parse_actions(point: str, actions: str) -> _Failure:
    failure = _Failure(-1)
    for action in actions.split(","):
        verb, _, argument = action.strip().partition(":")
        if verb == "kill" and not argument:
            failure.error_number = 0
        elif verb == "error" and isinstance(getattr(errno, argument, None), int):
            failure.error_number = getattr(errno, argument)
        elif verb == "after" and argument.isdecimal():
            failure.passes_left = int(argument)
        elif verb == "times" and argument.isdecimal():
            failure.times_left = int(argument)
        else:
            raise ValueError(f"{VARIABLE}: {point!r}: expected kill, error:ERRNO, after:N or times:N, not {action!r}")
    if failure.error_number < 0:
        raise ValueError(f"{VARIABLE}: {point!r} says neither kill nor error:ERRNO")
    return failure


def _fire(name: str) -> None:
    failure = _armed.get(name)
    if failure is None or failure.times_left <= 0:
        return
    if failure.passes_left > 0:
        failure.passes_left -= 1
        return
    failure.times_left -= 1
    if failure.error_number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(failure.error_number, f"{os.strerror(failure.error_number)} (failpoint {name})")


_watchers: list[Callable[[str], None]] = []
_armed = parse(os.environ.get(VARIABLE, ""))
