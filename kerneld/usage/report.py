"""What the verbs on usage take and give: frozen values for the system-call side."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Span(Enum):
    """What a record of usage covers. Days are those of UTC."""

    HOUR = "hour"
    DAY = "day"
    TOTAL = "total"  # all of the time that was asked for


@dataclass(frozen=True, slots=True)
class UsageArgs:
    """Which usage: from the hour of `since` up to and without `until`, in Unix seconds; 0 as `until` is now."""

    tenant: str = ""  # it and those beneath it; empty: all that the caller may see
    since: float = 0.0
    until: float = 0.0
    span: Span = Span.TOTAL
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What one tenant itself used in one span, without those beneath it."""

    tenant: str
    start: float  # of the span
    is_removed: bool  # the tenant is gone; one of the same name that is there now is another
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    device_us: int
    service_us: int
    device_page_ms: int
    host_page_ms: int
    disk_page_ms: int
    loads: int
    load_us: int


@dataclass(frozen=True, slots=True)
class ShareRecord:
    """A node of the tree of shares: what is due to it, what it used of late, and what follows. Shares are parts of 1."""

    tenant: str
    weight: int
    share: float  # of its parent's, by weights
    machine_share: float  # of the machine, by weights
    used_share: float  # of what it and its siblings used, decayed; 0 while none of them used anything
    decayed_us: int  # with everybody beneath it
    factor_milli: int  # by which its weight is multiplied, in thousandths
    effective_share: float  # of its parent's, by weights times factors
    effective_machine_share: float
    service_us: int  # charged to it and everybody beneath it, ever
    num_waiting: int
    num_running: int
