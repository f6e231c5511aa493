"""The page that Prometheus scrapes."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kerneld.calls import FinishReason
from kerneld.disk.events import DiskPageCorrupt, DiskTierFailed, PagesFetched, PagesSpilled
from kerneld.events import (
    FirstTokenSampled,
    ModelEvicted,
    ModelLoaded,
    ModelParked,
    ModelUnloaded,
    PageFoundCorrupt,
    PagesEvicted,
    PagesRestored,
    QuotaRefused,
    RequestFinished,
    RequestPreempted,
    WorkerLost,
)
from kerneld.gauges import Gauges
from kerneld.metrics import Metrics

# The names of vLLM that its dashboards draw and that mean the same here.
VLLM_NAMES = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket",
    "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_bucket",
    "num_preemptions_total",
]


def samples_of(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def finished(tenant: str = "lab") -> RequestFinished:
    return RequestFinished("r", "c", tenant, FinishReason.STOP, 5, 0, 7, 0.5, 1.5)


def test_vllm_dashboards_find_their_names() -> None:
    metrics = Metrics(Gauges)
    metrics.on_event(finished())
    metrics.on_event(RequestPreempted("r", "lab", "frames"))

    names = {name for name, _ in samples_of(metrics)}

    assert {f"kerneld_{name}" for name in VLLM_NAMES} <= names


def test_pages_are_counted_by_where_they_went() -> None:
    metrics = Metrics(Gauges)
    for event in (
        PagesEvicted("lab", 5, 2),
        PageFoundCorrupt("c", "lab", 1),
        DiskPageCorrupt(7, "what came from the disk is no page"),
        PagesSpilled(3, 3000, 0.1),
        PagesFetched(2, 2000, 0.1),
        DiskTierFailed("fetch", 4, "Input/output error"),
    ):
        metrics.on_event(event)

    samples = samples_of(metrics)
    assert samples["kerneld_pages_evicted_total", ()] == 5
    assert samples["kerneld_pages_dropped_total", ()] == 2
    assert [samples["kerneld_pages_corrupt_total", (("tier", tier),)] for tier in ("host", "disk")] == [1, 1]
    assert [samples["kerneld_disk_pages_total", (("action", action),)] for action in ("spill", "fetch")] == [3, 2]
    assert [samples["kerneld_disk_bytes_total", (("action", action),)] for action in ("spill", "fetch")] == [3000, 2000]
    assert samples["kerneld_disk_failures_total", (("action", "fetch"),)] == 4


def test_events_are_counted() -> None:
    metrics = Metrics(Gauges)
    for event in (
        finished(),
        finished(),
        FirstTokenSampled("r", "lab", 0.03),
        RequestPreempted("r", "lab", "share"),
        PagesRestored("lab", 4, 2),
        QuotaRefused("lab", "max_queued", "lab"),
        WorkerLost("cpu", 1, "killed", 0),
        ModelUnloaded("m", 1),  # counts nowhere
    ):
        metrics.on_event(event)

    samples = samples_of(metrics)

    assert samples["kerneld_request_success_total", (("finished_reason", "stop"),)] == 2
    assert samples["kerneld_time_to_first_token_seconds_sum", ()] == pytest.approx(0.03)
    assert samples["kerneld_num_preemptions_total", (("cause", "share"),)] == 1
    assert samples["kerneld_pages_restored_total", ()] == 4
    assert samples["kerneld_pages_recomputed_total", ()] == 2
    assert samples["kerneld_quota_rejections_total", (("limit", "max_queued"), ("tenant", "lab"))] == 1
    assert samples["kerneld_worker_restarts_total", (("device", "cpu"),)] == 1


def test_a_step_is_counted_in_one_go() -> None:
    metrics = Metrics(Gauges)

    metrics.observe_step(prompt_tokens=100, generation_tokens=32, compute_s=0.25, token_gap_s=0.03)
    metrics.observe_step(prompt_tokens=0, generation_tokens=8, compute_s=0.25, token_gap_s=99.0)

    samples = samples_of(metrics)
    assert samples["kerneld_prompt_tokens_total", ()] == 100
    assert samples["kerneld_generation_tokens_total", ()] == 40
    assert samples["kerneld_inter_token_latency_seconds_bucket", (("le", "0.025"),)] == 0
    assert samples["kerneld_inter_token_latency_seconds_bucket", (("le", "0.05"),)] == 32
    assert samples["kerneld_inter_token_latency_seconds_bucket", (("le", "+Inf"),)] == 40
    assert samples["kerneld_inter_token_latency_seconds_sum", ()] == pytest.approx(32 * 0.03 + 8 * 99.0)


def test_gauges_are_read_when_the_page_is_asked_for() -> None:
    readings = [Gauges(running=1), Gauges(running=2, quarantined={"cpu0": 3}, tier_bytes={("device", "kv"): 64})]
    metrics = Metrics(lambda: readings.pop(0))

    first, second = samples_of(metrics), samples_of(metrics)

    assert (first["kerneld_num_requests_running", ()], second["kerneld_num_requests_running", ()]) == (1, 2)
    assert second["kerneld_memory_bytes", (("kind", "kv"), ("tier", "device"))] == 64
    assert second["kerneld_ops_quarantined", (("device", "cpu0"),)] == 3


def test_weights_are_counted_by_where_they_came_from() -> None:
    metrics = Metrics(Gauges)

    metrics.on_event(ModelLoaded("m", 100, 0.5))
    metrics.on_event(ModelLoaded("m", 100, 0.1, host_bytes=75, copy_s=0.05, num_corrupt=1))
    metrics.on_event(ModelParked("m", 100, 0.1))
    metrics.on_event(ModelEvicted("m", 100, 2, is_parked=True))

    samples = samples_of(metrics)
    assert samples["kerneld_model_loaded_bytes_total", (("source", "disk"),)] == 125
    assert samples["kerneld_model_loaded_bytes_total", (("source", "host"),)] == 75
    assert samples["kerneld_model_parked_bytes_total", ()] == 100
    assert samples["kerneld_model_evictions_total", ()] == 1
    assert samples["kerneld_model_image_corrupt_total", ()] == 1
