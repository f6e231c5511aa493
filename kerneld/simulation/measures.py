"""Measures of a run, defined on its records alone: whoever has the file of records can compute them again.

    service    W of a tenant: 1 per input token, 2 per output token. The input of a request counts at its first token; its output comes
               evenly from its first token to its finish. A request that got no token is no service.
    claim      what a tenant is entitled to, beside the least entitled one: 1 for all where weights are equal (`claims_of`).
    max_gap    the largest |W_i(t) / claim_i - W_j(t) / claim_j| of two tenants at any instant of the run: accumulated service, plain, as
               in the figures of the paper. It says something of a scheduler only where all tenants always want more than they get.
    max_diff   over windows of 60 s that lie in the run, one every 10 s, the worst of

                   sum over tenants of min(M * claim_i - w_i, d_i) / 60 s

               where w_i is the service in the window, M the greatest w_i / claim_i in it, and d_i the cost of what had arrived by the end
               of the window and was not served by then (rejected requests excepted). In cost per second; table 2 of the paper.
    tokens_per_s     input and output tokens of the service, divided by the duration.
    rejected         requests that admission refused.
    mean_ttft_s      by tenant, over the requests that had a first token: from arrival to it. None where no request had one.

Source: Sheng et al., "Fairness in serving large language models", OSDI 2024: sections 3.1 and 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kerneld.simulation.records import Outcome, Record
from kerneld.simulation.workload import TenantLoad

INPUT_COST: Final = 1
OUTPUT_COST: Final = 2
WINDOW_S: Final = 60.0
STRIDE_S: Final = 10.0
_DIGITS: Final = 6  # of what is told; times of records have as many

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measures:
    """What `kerneld sim -o json` says of one scheduler."""

    max_gap: float
    max_diff: float
    tokens_per_s: float
    rejected: int
    mean_ttft_s: dict[str, float | None]


def cost_of(num_input: int, num_output: int) -> int:
    """What so many tokens count as service."""
    return INPUT_COST * num_input + OUTPUT_COST * num_output


class Curve:
    """A function of time that jumps at some instants and rises evenly between them, from 0 on."""

    def __init__(self, changes: Iterable[tuple[float, float, float]]) -> None:
        """Every change: when, by how much it jumps, and by how much it rises faster per second from then on."""
        self._times: list[float] = []
        self._levels: list[float] = []  # after each
        self._slopes: list[float] = []  # from each on
        at, level, slope = 0.0, 0.0, 0.0
        for time, jump, bend in sorted(changes):
            at, level, slope = time, level + slope * (time - at) + jump, slope + bend
            self._times.append(at)
            self._levels.append(level)
            self._slopes.append(slope)

    @property
    def times(self) -> list[float]:
        """When it changes."""
        return self._times

    def at(self, instants: Floats, *, is_after: bool = False) -> Floats:
        """Its values just before these instants, or just after them."""
        times = np.array([0.0, *self._times])
        last = np.searchsorted(times[1:], instants, side="right" if is_after else "left")
        slopes, levels = np.array([0.0, *self._slopes]), np.array([0.0, *self._levels])
        values: Floats = levels[last] + slopes[last] * (instants - times[last])
        return values


def service_of(records: Iterable[Record]) -> Curve:
    """Service of one tenant over time."""
    changes: list[tuple[float, float, float]] = []
    for record in records:
        if record.first_token_s is None or record.finish_s is None:
            continue
        seconds, output = record.finish_s - record.first_token_s, float(OUTPUT_COST * record.output_tokens)
        slope = output / seconds if seconds > 0 else 0.0
        changes.append((record.first_token_s, INPUT_COST * record.input_tokens + (0.0 if slope else output), slope))
        changes.append((record.finish_s, 0.0, -slope))
    return Curve(changes)


def demand_of(records: Iterable[Record]) -> Curve:
    """Cost of what arrived at one tenant, rejected requests excepted; what is not served of a request is wanted until its end."""
    changes: list[tuple[float, float, float]] = []
    for record in records:
        if record.outcome is Outcome.REJECTED:
            continue
        wanted = cost_of(record.input_tokens, record.wanted_tokens)
        changes.append((record.arrival_s, wanted, 0.0))
        if record.finish_s is not None:
            served = cost_of(record.input_tokens, record.output_tokens) if record.is_served else 0
            changes.append((record.finish_s, served - wanted, 0.0))
    return Curve(changes)


def claims_of(tenants: Sequence[TenantLoad], senders: Sequence[str]) -> dict[str, float]:
    """The claim of every tenant that sends: its part of the machine were all of them busy, divided by that of the least entitled one.

    Each level of the tree is divided by weight among those below which somebody sends; requests of a tenant itself stand beside its
    children, at weight 1.
    """
    weights = {tenant.path: tenant.weight for tenant in tenants}
    busy = [path for path in weights if any(sender == path or sender.startswith(path + "/") for sender in senders)]

    def total(parent: str) -> int:
        """Weights below a tenant that share its part."""
        return sum(weights[path] for path in busy if path.rpartition("/")[0] == parent) + (parent in senders)

    def part(path: str) -> float:
        """The part of the machine of a tenant and all below it."""
        parent = path.rpartition("/")[0]
        return part(parent) * weights[path] / total(parent) if path else 1.0

    parts = {sender: part(sender) / total(sender) for sender in senders}
    least = min(parts.values(), default=1.0)
    return {sender: round(own / least, 9) for sender, own in parts.items()}


class Books:
    """What is computed of the records of one run."""

    def __init__(self, records: Sequence[Record], duration_s: float, claims: Mapping[str, float]) -> None:
        """All records of the run, how long it lasted, and the claims of its tenants."""
        self.records, self.duration_s, self.claims = records, duration_s, claims
        self.of = {tenant: [record for record in records if record.tenant == tenant] for tenant in claims}
        self.service = {tenant: service_of(own) for tenant, own in self.of.items()}
        self.demand = {tenant: demand_of(own) for tenant, own in self.of.items()}

    def measures(self) -> Measures:
        """The figures of the run."""
        served = sum(record.input_tokens + record.output_tokens for record in self.records if record.is_served)
        return Measures(
            max_gap=round(self.max_gap(), _DIGITS),
            max_diff=round(self.max_diff(), _DIGITS),
            tokens_per_s=round(served / self.duration_s, _DIGITS),
            rejected=sum(record.outcome is Outcome.REJECTED for record in self.records),
            mean_ttft_s={tenant: _rounded(mean(ttfts(own))) for tenant, own in self.of.items()},
        )

    def max_gap(self) -> float:
        """The largest difference of accumulated service by claim between two tenants, at any instant."""
        instants = self._instants()
        before, after = self._by_claim(instants, is_after=False), self._by_claim(instants, is_after=True)
        return max((float(np.max(np.ptp(levels, axis=0))) for levels in (before, after) if levels.size), default=0.0)

    def max_diff(self) -> float:
        """The worst window's shortfall of service against the best served tenant, in cost per second."""
        length = min(WINDOW_S, self.duration_s)
        starts = np.arange(0.0, self.duration_s - length + 1e-9, STRIDE_S)
        ends, claims = starts + length, np.array(list(self.claims.values()))[:, None]
        if not len(claims):
            return 0.0
        until = np.array([curve.at(ends) for curve in self.service.values()])
        served = until - np.array([curve.at(starts) for curve in self.service.values()])
        wanted = np.array([curve.at(ends) for curve in self.demand.values()]) - until
        missed = np.minimum(np.max(served / claims, axis=0) * claims - served, np.maximum(wanted, 0.0))
        return float(max(math.fsum(column) for column in missed.T)) / length

    def totals(self) -> dict[str, float]:
        """Service of every tenant at the end."""
        end = np.array([self.duration_s])
        return {tenant: float(curve.at(end, is_after=True)[0]) for tenant, curve in self.service.items()}

    def worst_lags(self) -> dict[str, float]:
        """By tenant, the most service that it was behind the best served one by claim, counting no more than it wanted then."""
        instants = self._instants()
        if not len(instants):
            return dict.fromkeys(self.claims, 0.0)
        best = np.max(self._by_claim(instants, is_after=True), axis=0)
        lags: dict[str, float] = {}
        for tenant, claim in self.claims.items():
            served = self.service[tenant].at(instants, is_after=True)
            wanted = np.maximum(self.demand[tenant].at(instants, is_after=True) - served, 0.0)
            lags[tenant] = float(np.max(np.minimum(best * claim - served, wanted)))
        return lags

    def _instants(self) -> Floats:
        """When the service of anybody changes, and the end."""
        times = {time for curve in self.service.values() for time in curve.times}
        return np.array(sorted(times | {self.duration_s}))

    def _by_claim(self, instants: Floats, *, is_after: bool) -> Floats:
        """Accumulated service by claim, a row for each tenant."""
        rows = [self.service[tenant].at(instants, is_after=is_after) / claim for tenant, claim in self.claims.items()]
        return np.array(rows)


def ttfts(records: Iterable[Record]) -> list[float]:
    """Seconds from arrival to the first token, of the requests that had one, in the order of the records."""
    return [record.first_token_s - record.arrival_s for record in records if record.first_token_s is not None]


def mean(values: Sequence[float]) -> float | None:
    """The mean, if there is one."""
    return math.fsum(values) / len(values) if values else None


def percentile(values: Sequence[float], part: float) -> float | None:
    """The least value that at least this part of them do not pass, if there is one."""
    return sorted(values)[max(math.ceil(part * len(values)) - 1, 0)] if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
