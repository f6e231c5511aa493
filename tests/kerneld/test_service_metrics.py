"""The series of tenants, and of the scheduler's judgement."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kerneld.calls import FinishReason
from kerneld.events import FirstTokenSampled, QuotaRefused, RequestDeferred, RequestFinished, RequestPreempted
from kerneld.gauges import FairGauges, Gauges, StepGauges
from kerneld.metrics import Metrics
from kerneld.pricing.tariff import Tariff
from kerneld.tenantlabels import MAX_TENANTS, OTHER
from kerneld.weights.debts import SYSTEM, LoadCharged

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Page:
    """The page of metrics over gauges that a test changes."""

    def __init__(self) -> None:
        self.fair = FairGauges()
        self.now = 0.0
        self.metrics = Metrics(lambda: Gauges(fair=self.fair), lambda: self.now)

    def samples(self) -> Samples:
        families = text_string_to_metric_families(self.metrics.render().decode())
        return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}

    def of(self, name: str) -> dict[str, float]:
        """The series of a metric by tenant."""
        return {dict(labels)["tenant"]: value for (found, labels), value in self.samples().items() if found == f"kerneld_{name}"}

    def serve(self, **service_us: int) -> None:
        self.fair = replace(self.fair, service_us=service_us)


@pytest.fixture
def page() -> Page:
    return Page()


def finished(tenant: str, reason: FinishReason = FinishReason.STOP, queue_s: float = 0.5) -> RequestFinished:
    return RequestFinished("r", "c", tenant, reason, 5, 0, 7, queue_s, 1.5)


def test_waits_refusals_and_preemptions_are_counted_by_tenant(page: Page) -> None:
    for event in (
        finished("lab/ann", queue_s=3.0),
        finished("lab/ann", FinishReason.DEADLINE),
        finished("lab/bob"),
        FirstTokenSampled("r", "lab/bob", 0.03),
        RequestPreempted("r", "lab/ann", "share"),
        QuotaRefused("lab/bob", "max_queued", "lab"),
        RequestDeferred("r", "lab/bob", 2.0),
        LoadCharged("m", "lab/bob", 1_500_000),
        LoadCharged("m", SYSTEM, 250_000),
    ):
        page.metrics.on_event(event)

    samples = page.samples()
    assert page.of("tenant_deferrals_total") == {"lab/ann": 0, "lab/bob": 1}
    assert page.of("tenant_load_seconds_total")["lab/bob"] == 1.5
    assert samples["kerneld_system_seconds_total", (("cause", "load"),)] == 0.25
    assert page.of("tenant_queue_time_seconds_count") == {"lab/ann": 2, "lab/bob": 1}
    assert page.of("tenant_queue_time_seconds_sum")["lab/ann"] == 3.5
    assert samples["kerneld_tenant_queue_time_seconds_bucket", (("le", "0.5"), ("tenant", "lab/ann"))] == 1
    assert page.of("tenant_time_to_first_token_seconds_sum")["lab/bob"] == pytest.approx(0.03)
    assert page.of("deadline_misses_total") == {"lab/ann": 1, "lab/bob": 0}
    assert samples["kerneld_tenant_preemptions_total", (("cause", "share"), ("tenant", "lab/ann"))] == 1
    assert samples["kerneld_quota_rejections_total", (("limit", "max_queued"), ("tenant", "lab/bob"))] == 1


def test_a_thousand_tenants_make_no_more_series_than_there_are_places(page: Page) -> None:
    for idx in range(1000):
        for event in (
            finished(f"t{idx:04d}"),
            FirstTokenSampled("r", f"t{idx:04d}", 0.1),
            RequestPreempted("r", f"t{idx:04d}", "share"),
            QuotaRefused(f"t{idx:04d}", "max_queued", "lab"),
        ):
            page.metrics.on_event(event)
    tenants = [f"t{idx:04d}" for idx in range(1000)]
    page.fair = FairGauges(dict.fromkeys(tenants, 5), dict.fromkeys(tenants, 1.0), dict.fromkeys(tenants, 1000))

    by_name: dict[str, set[str]] = {}
    for name, labels in page.samples():
        if "tenant" in dict(labels):
            by_name.setdefault(name, set()).add(dict(labels)["tenant"])

    assert len(by_name) >= 10
    assert {name: len(labels) for name, labels in by_name.items() if len(labels) > MAX_TENANTS + 1} == {}
    assert page.of("tenant_queue_time_seconds_count")[OTHER] == 1000 - MAX_TENANTS


def test_the_busiest_tenants_get_the_series(page: Page) -> None:
    everybody = {f"t{idx:04d}": 1000 for idx in range(1000)}
    page.now += 60
    page.serve(**everybody)
    page.samples()
    page.now += 60
    page.serve(**{tenant: us + (5_000_000 if tenant >= "t0990" else 10) for tenant, us in everybody.items()})

    served = page.of("service_total")

    assert {f"t{idx:04d}" for idx in range(990, 1000)} <= served.keys()
    assert len(served) == MAX_TENANTS + 1


def test_no_service_is_counted_twice_and_refunds_let_no_counter_fall(page: Page) -> None:
    page.metrics.on_event(finished("a"))
    page.serve(a=100, b=7)
    assert page.of("service_total") == {"a": 100, OTHER: 0}  # what `b` had before the first look is nobody's
    page.serve(a=60, b=17)
    assert page.of("service_total") == {"a": 100, OTHER: 10}
    page.serve(a=130, b=12)
    assert page.of("service_total") == {"a": 130, OTHER: 10}
    page.serve(a=130)
    assert page.of("service_total") == {"a": 130, OTHER: 10}


def test_a_tenant_that_is_gone_leaves_no_series(page: Page) -> None:
    page.metrics.on_event(finished("a"))
    page.metrics.on_event(finished("b"))
    page.serve(a=100, b=7)
    page.samples()

    page.serve(a=130)

    assert page.of("tenant_queue_time_seconds_count").keys() == {"a"}


def test_lag_and_factors_are_shown_of_those_with_a_series(page: Page) -> None:
    page.metrics.on_event(finished("a"))
    page.fair = FairGauges(lag_us={"a": 1500.0, "b": -900.0, "c": -600.0}, factor_milli={"a": 2500, "b": 1000})

    assert page.of("lag") == {"a": 1.5, OTHER: -1.5}
    assert page.of("share_factor") == {"a": 2.5}


def test_what_the_scheduler_predicts_is_shown_with_its_errors(page: Page) -> None:
    models = {"m": StepGauges(Tariff(10, 1, 20, 3), 0.25), "new": StepGauges(Tariff(1, 1, 1))}
    page.fair = FairGauges(
        jain=0.93, deferred=4, step_tokens=96, estimate_error=0.31, num_estimates=64, models=models, system_us={"restore": 2_500_000}
    )

    samples = page.samples()

    assert samples["kerneld_jain_index", ()] == 0.93
    assert samples["kerneld_num_requests_deferred", ()] == 4
    assert samples["kerneld_step_token_budget", ()] == 96
    assert samples["kerneld_start_estimate_error_ratio", ()] == 0.31
    assert samples["kerneld_start_estimates_judged", ()] == 64
    assert samples["kerneld_system_seconds_total", (("cause", "restore"),)] == 2.5
    assert samples["kerneld_tariff_nanoseconds", (("model", "m"), ("token", "context"))] == 3
    assert samples["kerneld_step_cost_error_ratio", (("model", "m"),)] == 0.25
    assert ("kerneld_step_cost_error_ratio", (("model", "new"),)) not in samples


def test_every_series_says_what_it_is(page: Page) -> None:
    families = text_string_to_metric_families(page.metrics.render().decode())
    assert [family.name for family in families if family.name.startswith("kerneld") and not family.documentation] == []
