"""Metrics of fairness: who waits how long, who was served how much, who gives way to whom, and how well the scheduler predicts.

Series with the label `tenant` are those of the tenants that have a place in `kerneld.tenantlabels`, and of "other". They are counted here
and read off when the page is asked for, so that a tenant that loses its place takes its series along. All on the event-loop thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from kerneld.calls import FinishReason
from kerneld.events import (
    Event,
    FirstTokenSampled,
    QuotaRefused,
    RequestDeferred,
    RequestFinished,
    RequestPreempted,
)
from kerneld.gauges import FairGauges
from kerneld.histogram import BatchHistogram
from kerneld.tenantlabels import MAX_TENANTS, OTHER, TenantLabels
from kerneld.usage.amounts import SYSTEM
from kerneld.weights.debts import LoadCharged

RANK_S: Final = 60.0  # how often the places of tenants are given anew; they are when somebody asks for the page
_WAIT_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(slots=True)
class _Series:
    """What is counted of one tenant, or of all others together."""

    queue_s: BatchHistogram = field(default_factory=lambda: BatchHistogram(_WAIT_S))
    first_token_s: BatchHistogram = field(default_factory=lambda: BatchHistogram(_WAIT_S))
    preemptions: Counter[str] = field(default_factory=Counter)  # by cause
    refusals: Counter[str] = field(default_factory=Counter)  # by limit
    deadline_misses: int = 0
    deferrals: int = 0
    load_us: int = 0


class ServiceMetrics:
    """The series of tenants and of the scheduler's judgement."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_tenants: int = MAX_TENANTS) -> None:
        self._clock = clock
        self._ranked_at = clock()
        self._series: dict[str, _Series] = {}
        self._labels = TenantLabels(max_tenants, self._drop)
        self._most_us: dict[str, int] = {}  # service of a tenant at its highest: refunds do not make a counter fall
        self._others_us = 0  # service of tenants without a place, as it came
        self._system_loads_us = 0  # of models that nobody asked for
        self._ranked_us: Mapping[str, int] = {}  # service when places were given the last time
        self._handlers: dict[type[Event], Callable[..., None]] = {
            FirstTokenSampled: lambda event: self._of(event.tenant).first_token_s.observe(event.seconds),
            RequestFinished: self._on_finished,
            RequestPreempted: self._on_preempted,
            QuotaRefused: self._on_refused,
            RequestDeferred: self._on_deferred,
            LoadCharged: self._on_load_charged,
        }

    def on_event(self, event: Event) -> None:
        """Take an event of the bus."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _rank(self, service_us: Mapping[str, int]) -> None:
        """Give the places to the busiest tenants."""
        self._ranked_at = self._clock()
        self._labels.rank({tenant: us - self._ranked_us.get(tenant, us) for tenant, us in service_us.items()})
        self._ranked_us = dict(service_us)

    def families(self, fair: FairGauges) -> Iterator[Metric]:
        """Every series, for the registry."""
        self._take(fair.service_us)
        if self._clock() - self._ranked_at >= RANK_S:
            self._rank(fair.service_us)
        yield from self._service_families(fair)
        yield self._histogram("tenant_queue_time", "Waiting, all of a request's waits together, by tenant.", lambda each: each.queue_s)
        text = "From arrival to the first output token, by tenant."
        yield self._histogram("tenant_time_to_first_token", text, lambda each: each.first_token_s)
        yield self._counter("tenant_preemptions", "Requests that ran and had to wait again.", "cause", lambda each: each.preemptions)
        yield self._counter("quota_rejections", "Calls that a limit refused.", "limit", lambda each: each.refusals)
        yield self._total("deadline_misses", "Requests that their deadline ended.", lambda each: each.deadline_misses)
        yield self._total("tenant_deferrals", "Requests that waited behind a soft limit.", lambda each: each.deferrals)
        text = "What loads of models took that a tenant paid for; told when a load is paid, or the model leaves the device."
        yield self._total("tenant_load_seconds", text, lambda each: each.load_us / 1e6)
        yield from _scheduler_families(fair)
        yield _system_family({**fair.system_us, "load": self._system_loads_us})
        yield from _model_families(fair)

    # ---------------------------------------------------------------------------------------------------------------------- events

    def _on_finished(self, event: RequestFinished) -> None:
        series = self._of(event.tenant)
        series.queue_s.observe(event.queue_s)
        series.deadline_misses += event.reason is FinishReason.DEADLINE

    def _on_preempted(self, event: RequestPreempted) -> None:
        self._of(event.tenant).preemptions[event.cause] += 1

    def _on_refused(self, event: QuotaRefused) -> None:
        self._of(event.tenant).refusals[event.limit] += 1

    def _on_deferred(self, event: RequestDeferred) -> None:
        self._of(event.tenant).deferrals += 1

    def _on_load_charged(self, event: LoadCharged) -> None:
        if event.tenant == SYSTEM:
            self._system_loads_us += event.load_us
        else:
            self._of(event.tenant).load_us += event.load_us

    def _of(self, tenant: str) -> _Series:
        return self._series.setdefault(self._labels.label(tenant), _Series())

    def _drop(self, tenant: str) -> None:
        self._series.pop(tenant, None)

    # ---------------------------------------------------------------------------------------------------------------------- service

    def _take(self, service_us: Mapping[str, int]) -> None:
        """Count what tenants without a place were charged since the last look, and forget tenants that are gone."""
        most = self._most_us
        for tenant, us in service_us.items():
            before = most.get(tenant)
            if before is None or us > before:
                most[tenant] = us
                if before is not None and tenant not in self._labels:
                    self._others_us += us - before
        if len(most) > len(service_us):
            for tenant in most.keys() - service_us.keys():
                del most[tenant]
                self._labels.drop(tenant)

    def _service_families(self, fair: FairGauges) -> Iterator[Metric]:
        service = CounterMetricFamily("kerneld_service", "Microseconds of device time charged, refunds taken off.", labels=["tenant"])
        for tenant in fair.service_us:
            if tenant in self._labels:
                service.add_metric([tenant], self._most_us[tenant])
        service.add_metric([OTHER], self._others_us)
        yield service
        yield self._gauge(
            "lag",
            "Milliseconds of device time that a tenant with something to run is owed by its siblings (below 0: that it owes them), "
            "next to what its weight gives it; of siblings they add up to 0.",
            {tenant: us / 1000 for tenant, us in fair.lag_us.items()},
        )
        factors = {tenant: milli / 1000 for tenant, milli in fair.factor_milli.items()}
        yield self._gauge("share_factor", "What long-term use multiplies a tenant's weight by.", factors, has_others=False)

    def _gauge(self, name: str, text: str, values: Mapping[str, float], *, has_others: bool = True) -> Metric:
        """A gauge by tenant; those without a place are added up, where that says something."""
        family = GaugeMetricFamily(f"kerneld_{name}", text, labels=["tenant"])
        others = 0.0
        for tenant, value in values.items():
            if tenant in self._labels:
                family.add_metric([tenant], value)
            else:
                others += value
        if has_others:
            family.add_metric([OTHER], others)
        return family

    # ---------------------------------------------------------------------------------------------------------------------- shapes

    def _histogram(self, name: str, text: str, of: Callable[[_Series], BatchHistogram]) -> Metric:
        family = HistogramMetricFamily(f"kerneld_{name}_seconds", text, labels=["tenant"])
        for label, series in self._series.items():
            family.add_metric([label], of(series).buckets(), of(series).total)
        return family

    def _total(self, name: str, text: str, of: Callable[[_Series], float]) -> Metric:
        family = CounterMetricFamily(f"kerneld_{name}", text, labels=["tenant"])
        for label, series in self._series.items():
            family.add_metric([label], of(series))
        return family

    def _counter(self, name: str, text: str, by: str, of: Callable[[_Series], Counter[str]]) -> Metric:
        family = CounterMetricFamily(f"kerneld_{name}", text, labels=["tenant", by])
        for label, series in self._series.items():
            for key, count in of(series).items():
                family.add_metric([label, key], count)
        return family


def _scheduler_families(fair: FairGauges) -> Iterable[Metric]:
    text = (
        "Jain's index of service by weight over the last minute, of siblings that had something to run all the time; of several groups of "
        "siblings the least. 1: all got the same, or nobody competed."
    )
    yield GaugeMetricFamily("kerneld_jain_index", text, value=fair.jain)
    yield GaugeMetricFamily("kerneld_num_requests_deferred", "Requests that wait behind a soft limit.", value=fair.deferred)
    yield GaugeMetricFamily("kerneld_step_token_budget", "Tokens that the last step was allowed to compute.", value=fair.step_tokens)
    text = "Median error of the estimates when a request starts, as a part of the wait; not a number until one was judged."
    error = float("nan") if fair.estimate_error is None else fair.estimate_error
    yield GaugeMetricFamily("kerneld_start_estimate_error_ratio", text, value=error)
    yield GaugeMetricFamily("kerneld_start_estimates_judged", "Estimates that this error is of.", value=fair.num_estimates)


def _system_family(system_us: Mapping[str, int]) -> Metric:
    text = "Seconds of device time that nobody asked for and no tenant pays, by cause."
    family = CounterMetricFamily("kerneld_system_seconds", text, labels=["cause"])
    for cause, us in system_us.items():
        family.add_metric([cause], us / 1e6)
    return family


def _model_families(fair: FairGauges) -> Iterable[Metric]:
    tariff = GaugeMetricFamily("kerneld_tariff_nanoseconds", "What a token costs, in device time.", labels=["model", "token"])
    error = GaugeMetricFamily("kerneld_step_cost_error_ratio", "How far steps are off what was predicted, in proportion.", labels=["model"])
    for model, known in fair.models.items():
        prices = known.tariff
        parts = {"input": prices.input_ns, "cached": prices.cached_ns, "output": prices.output_ns, "context": prices.context_ns}
        for token, price in parts.items():
            tariff.add_metric([model, token], price)
        if known.error is not None:
            error.add_metric([model], known.error)
    yield from (tariff, error)
