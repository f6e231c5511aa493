"""Records: what became of each simulated request. Every figure of a run can be computed from them (`kerneld.simulation.measures`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import IO


class Outcome(Enum):
    """How a request stood when the run ended."""

    FINISHED = "finished"
    CUT = "cut"  # it had its first token; the end of the run is its finish
    WAITING = "waiting"  # it had no token yet
    REJECTED = "rejected"  # admission refused it
    EXPIRED = "expired"  # its deadline passed


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are virtual seconds since the beginning; None: that did not happen."""

    number: int  # in the order of arrival, from 1
    tenant: str
    scheduler: str
    arrival_s: float
    input_tokens: int
    wanted_tokens: int  # of output: what a finished one has
    outcome: Outcome
    first_token_s: float | None = None
    finish_s: float | None = None
    output_tokens: int = 0  # that came

    @property
    def is_served(self) -> bool:
        """Whether it counts as service: it had its first token."""
        return self.first_token_s is not None

    def plain(self) -> dict[str, object]:
        """As one line of a file of records has it."""
        return {
            "tenant": self.tenant,
            "scheduler": self.scheduler,
            "arrival_s": self.arrival_s,
            "first_token_s": self.first_token_s,
            "finish_s": self.finish_s,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "wanted_tokens": self.wanted_tokens,
            "outcome": self.outcome.value,
        }


def write_records(records: Iterable[Record], file: IO[str]) -> None:
    """One line of JSON a request."""
    for record in records:
        file.write(json.dumps(record.plain()) + "\n")


def read_records(lines: Iterable[str]) -> Iterator[Record]:
    """What `write_records` wrote. Raises: ValueError, KeyError, TypeError, if it is something else."""
    for number, line in enumerate(lines, 1):
        kept = json.loads(line)
        yield Record(**(kept | {"number": number, "outcome": Outcome(kept["outcome"])}))
