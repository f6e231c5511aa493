"""What the daemon says of usage and shares. Frozen; shares are parts of 1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What one tenant itself used in one span, without those beneath it; "(system)" is what nobody asked for."""

    tenant: str
    start: float  # of the span, Unix seconds
    is_removed: bool  # the tenant is gone; one of the same name that is there now is another
    requests: int  # that ended
    input_tokens: int
    cached_tokens: int  # of the input
    output_tokens: int
    device_s: float  # measured time of steps
    service_us: int  # charged to its share; negative where more was given back
    device_page_s: float  # pages held, times seconds
    host_page_s: float
    disk_page_s: float
    loads: int  # of models, for which it paid or paid a part
    load_s: float  # charged for them


@dataclass(frozen=True, slots=True)
class ShareRecord:
    """A node of the tree of shares: what is due to it, what it used of late, and what follows."""

    tenant: str
    weight: int
    share: float  # of its parent's, by weights
    machine_share: float  # of the machine, by weights
    used_share: float  # of what it and its siblings used, with a half-life; 0 while none of them did
    decayed_us: int  # what it and everybody beneath it used, with a half-life
    factor_milli: int  # its weight is multiplied by this / 1000
    effective_share: float  # of its parent's, by weights times factors
    effective_machine_share: float
    service_us: int  # charged to it and everybody beneath it, ever
    num_waiting: int
    num_running: int
