"""Replay: the requests that a daemon had, from its own event log, as `kernelctl events -o json` writes it.

    RequestArrived    who, when, how long its input, what it asked for
    RequestFinished   how long its output was; one that is missing, or has none, counts as what was asked for

Input that a request appended to a context of before is taken as a context of its own. Tenants have weight 1 where nothing else is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kerneld.calls import FinishReason, Priority
from kerneld.simulation.workload import Job, TenantLoad, WorkloadInvalid

ARRIVED, FINISHED, MISSED = "RequestArrived", "RequestFinished", "EventsMissed"
_TAIL_S = 1.0  # after the last event


@dataclass(frozen=True, slots=True)
class Replay:
    """What is in a log: jobs by arrival since the first one, how long it reaches, and events that it says are missing from it."""

    jobs: tuple[Job, ...]
    duration_s: float
    num_missed: int = 0

    @classmethod
    def read(cls, path: Path) -> Replay:
        """The requests of an event log. Raises: WorkloadInvalid."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise WorkloadInvalid(f"{path}: cannot read the event log: {error}.") from error
        return _Reader(path).read(lines)

    def tenants(self, known: Sequence[TenantLoad] = ()) -> tuple[TenantLoad, ...]:
        """The tenants that are known, and those of the log that are not, with everybody above them."""
        paths = {tenant.path for tenant in known}
        missing: dict[str, None] = {}
        for job in self.jobs:
            names = job.tenant.split("/")
            missing.update(dict.fromkeys("/".join(names[: idx + 1]) for idx in range(len(names))))
        return (*known, *(TenantLoad(path) for path in missing if path not in paths))


class _Reader:
    """Reads one log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrived: dict[str, tuple[float, dict[str, str]]] = {}  # when, and the facts, by request
        self._finished: dict[str, dict[str, str]] = {}

    def read(self, lines: Iterable[str]) -> Replay:
        last, num_missed = 0.0, 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            at, name, facts = self._event(number, line)
            last = max(last, at)
            if name == ARRIVED:
                self._arrived[facts.get("request", str(number))] = at, facts
            elif name == FINISHED:
                self._finished[facts.get("request", str(number))] = facts
            elif name == MISSED:
                num_missed += int(facts.get("count", 0))
        if not self._arrived:
            raise WorkloadInvalid(f"{self._path}: no request arrives in this log.")
        first = min(at for at, _facts in self._arrived.values())
        jobs = sorted((self._job(request, at - first) for request, (at, _facts) in self._arrived.items()), key=lambda job: job.arrival_s)
        return Replay(tuple(jobs), round(last - first + _TAIL_S, 6), num_missed)

    def _event(self, number: int, line: str) -> tuple[float, str, dict[str, str]]:
        try:
            event = json.loads(line)
            return float(event["at"]), str(event["name"]), dict(event["facts"])
        except (ValueError, TypeError, KeyError) as error:
            problem = f"expected an event as `kernelctl events -o json` prints it ({type(error).__name__}: {error})"
            raise WorkloadInvalid(f"{self._path}, line {number}: {problem}.") from error

    def _job(self, request: str, arrival_s: float) -> Job:
        facts, end = self._arrived[request][1], self._finished.get(request, {})
        try:
            asked = int(facts.get("max_tokens", 0))
            came = int(end.get("output_tokens", 0)) or asked or 1
            is_full = end.get("reason", FinishReason.LENGTH.value) == FinishReason.LENGTH.value
            return Job(
                tenant=facts["tenant"],
                arrival_s=round(arrival_s, 6),
                num_input=max(int(facts["input_tokens"]), 1),
                num_output=came,
                max_tokens=came if is_full else max(asked, came),
                priority=Priority(facts.get("priority", Priority.INTERACTIVE.value)),
                nice=int(facts.get("nice", 0)),
                deadline_s=float(facts.get("deadline_s", 0.0)),
            )
        except (ValueError, KeyError) as error:
            raise WorkloadInvalid(f"{self._path}: request {request}: {type(error).__name__}: {error}.") from error
