"""What was used: amounts that add up, and the hour and the tenant that they belong to.

    bucket    tenant "lab/ann", born at 1763712000.5, hour 1763715600     amounts: 12 requests, 4,096 input tokens ...

A tenant is its path and the time at which it was added: what a removed tenant used stays under its path until it is too old, and is never
taken for that of a later one of the same name. What nobody asked for stands under `SYSTEM`, which no tenant can be called.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, NamedTuple

# Pages that are moved, tokens that are computed again after a preemption, loads by which nobody was served.
SYSTEM: Final = "(system)"
HOUR_S: Final = 3600


class Bucket(NamedTuple):
    """Whose amounts, and of which hour."""

    tenant: str
    born: float  # when the tenant was added, Unix seconds; 0 for `SYSTEM`
    hour: int  # its beginning, Unix seconds


@dataclass(slots=True)
class Amounts:
    """What was used. Integers, so that sums of them are exact."""

    requests: int = 0  # that ended
    input_tokens: int = 0  # of those, cached ones included
    cached_tokens: int = 0
    output_tokens: int = 0
    device_us: int = 0  # measured time of steps, split among the rows of each
    service_us: int = 0  # charged in the fair-share accounts; negative where more was given back than charged
    device_page_ms: int = 0  # pages held, times milliseconds
    host_page_ms: int = 0
    disk_page_ms: int = 0
    loads: int = 0  # of models, for which it paid or paid a part
    load_us: int = 0  # charged for them

    def add(self, more: Amounts) -> None:
        """Add other amounts to these."""
        for name in AMOUNTS:
            setattr(self, name, getattr(self, name) + getattr(more, name))

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in AMOUNTS)


AMOUNTS: Final = tuple(field.name for field in fields(Amounts))


def hour_of(at: float) -> int:
    """The beginning of the hour of a time, both in Unix seconds."""
    return int(at // HOUR_S) * HOUR_S
