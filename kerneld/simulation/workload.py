"""The workload of a simulation: a device, the numbers that the scheduler decides by, and tenants with the requests that they send.

Workload --draw (kerneld.simulation.arrivals)--> Jobs, in the order of arrival
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from statistics import NormalDist
from typing import Final

from drivers.sim import StepModel
from kerneld.calls import Limits, Priority
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.tariff import Tariff

MIB: Final = 1 << 20
# Output counts twice, as in the paper; and on the default device, a second of service is about a second.
PAPER_TARIFF: Final = Tariff(input_ns=750_000, cached_ns=75_000, output_ns=1_500_000)
ENDLESS: Final = float("inf")
MOST_REQUESTS: Final = 1_000_000  # expected of a workload: all of them are drawn before it runs
_EDGE: Final = 1e-9


class WorkloadInvalid(ValueError):
    """A workload cannot be run; the text says where, what was given and what is accepted."""


class Arrival(Enum):
    """How requests of a phase are spread over time."""

    CONSTANT = "constant"  # every 1 / rate seconds
    POISSON = "poisson"
    ONOFF = "onoff"  # constant while on


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always so many tokens."""

    tokens: int

    @property
    def most(self) -> int:
        """The greatest length that can come."""
        return self.tokens

    def at(self, _part: float) -> int:
        """The length that a part of all are below."""
        return self.tokens


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any number of tokens from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def most(self) -> int:
        """The greatest length that can come."""
        return self.high

    def at(self, part: float) -> int:
        """The length that a part of all are below."""
        return min(self.low + int(part * (self.high - self.low + 1)), self.high)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Many short ones and a few long ones: `mean` is that of the whole, before it is cut at `most`; `sigma` is of the logarithm."""

    mean: float
    sigma: float
    most: int

    def at(self, part: float) -> int:
        """The length that a part of all are below."""
        normal = NormalDist(math.log(self.mean) - self.sigma**2 / 2, self.sigma) if self.sigma else None
        drawn = math.exp(normal.inv_cdf(min(max(part, _EDGE), 1 - _EDGE))) if normal else self.mean
        return min(max(round(drawn), 1), self.most)


Lengths = Fixed | Uniform | Lognormal


@dataclass(frozen=True, slots=True)
class Phase:
    """How a tenant sends from the end of its phase before until `until_s`."""

    rate: float  # requests per second; while on, where it is on and off
    arrival: Arrival = Arrival.CONSTANT
    until_s: float = ENDLESS
    on_s: float = 0.0  # 0: always on; else on first, then off for `off_s`, and so on, from the beginning of the phase
    off_s: float = 0.0

    def expected(self, lasts_s: float) -> float:
        """Requests that come, on average, while the phase lasts so long."""
        if not self.on_s:
            return self.rate * lasts_s
        whole, rest_s = divmod(lasts_s, self.on_s + self.off_s)
        return self.rate * (whole * self.on_s + min(rest_s, self.on_s))


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """A tenant, and the requests that it sends; one without phases and trace sends none (it is somebody's parent)."""

    path: str
    weight: int = 1
    limits: Limits = field(default_factory=Limits)
    phases: tuple[Phase, ...] = ()
    trace: tuple[float, ...] = ()  # arrivals one by one, in place of phases
    input: Lengths = Fixed(256)
    output: Lengths = Fixed(256)
    max_tokens: int = 0  # what its requests ask for; 0: exactly as long as they come to be
    priority: Priority = Priority.INTERACTIVE
    nice: int = 0
    deadline_s: float = 0.0  # after arrival; 0: none

    @property
    def is_sending(self) -> bool:
        """Whether any request may come from it."""
        return bool(self.phases or self.trace)

    def expected(self, duration_s: float) -> float:
        """Requests that come from it, on average, in a workload of that length."""
        count, begin = float(sum(at < duration_s for at in self.trace)), 0.0
        for phase in self.phases:
            end = min(phase.until_s, duration_s)
            count += phase.expected(max(end - begin, 0.0))
            begin = end
        return count


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """The simulated device. The defaults are like a 7B model in half precision on an A10G: see `kerneld.simulation.presets`."""

    costs: StepModel = field(default_factory=lambda: StepModel(step_s=0.030, token_s=0.0002, row_s=0.0006))
    pages: int = 625
    page_tokens: int = 16
    page_bytes: int = 8 * MIB
    host_pages: int = 0
    copy_bytes_per_s: float = 12e9
    max_rows: int = 128
    max_step_tokens: int = 512
    context_tokens: int = 4096  # longest context

    @property
    def pool_tokens(self) -> int:
        """Tokens whose KV fits on the device."""
        return self.pages * self.page_tokens


@dataclass(frozen=True, slots=True)
class SchedulerSpec:
    """What the scheduler goes by."""

    policy: SchedulerPolicy
    tariff: Tariff = PAPER_TARIFF
    max_queued: int = 1_000_000  # of all tenants together; more are rejected


@dataclass(frozen=True, slots=True)
class Job:
    """One request that comes."""

    tenant: str
    arrival_s: float
    num_input: int
    num_output: int
    max_tokens: int  # that it asks for, at least `num_output`
    priority: Priority = Priority.INTERACTIVE
    nice: int = 0
    deadline_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that a run follows from."""

    name: str
    duration_s: float
    tenants: tuple[TenantLoad, ...]
    seed: int = 1
    device: DeviceSpec = field(default_factory=DeviceSpec)
    scheduler: SchedulerSpec = field(default_factory=lambda: SchedulerSpec(SchedulerPolicy()))
    jobs: tuple[Job, ...] = ()  # of a replay, in the order of arrival; else they are drawn
    note: str = ""

    @property
    def senders(self) -> tuple[str, ...]:
        """Tenants that send requests, in the order in which they are listed."""
        sending = {job.tenant for job in self.jobs}
        return tuple(tenant.path for tenant in self.tenants if tenant.is_sending or tenant.path in sending)
