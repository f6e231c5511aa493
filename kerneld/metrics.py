"""Metrics in Prometheus format, fed by events and by one call per step.

Names that mean what vLLM's mean keep its names behind the prefix `kerneld_`, so that its dashboards need only another prefix. What is
about tenants and fairness is in `kerneld.service_metrics`. Gauges are read when somebody asks for the page. All on the event-loop thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from kerneld.disk.events import DiskPageCorrupt, DiskTierFailed, PagesFetched, PagesSpilled
from kerneld.events import (
    ContextFailed,
    Event,
    FirstTokenSampled,
    ImageRestored,
    ImageWritten,
    ModelEvicted,
    ModelLoaded,
    ModelParked,
    PageFoundCorrupt,
    PagesEvicted,
    PagesRestored,
    PrefixLooked,
    RequestAdmitted,
    RequestFinished,
    RequestPreempted,
    WorkerLost,
    WorkerRecovered,
)
from kerneld.gauges import DeviceGauges, Gauges
from kerneld.histogram import BatchHistogram
from kerneld.service_metrics import ServiceMetrics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0)
_TOKEN_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)


@dataclass(slots=True)
class StepCounts:
    """What steps did since the start; the dispatcher adds to it once per step."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    compute_s: float = 0.0


class Metrics(Collector):
    """All series of the daemon. Subscribe `on_event` to the event bus."""

    def __init__(self, gauges: Callable[[], Gauges], clock: Callable[[], float] = time.monotonic) -> None:
        """`gauges` reads the machine when the page is asked for; `clock` never goes back."""
        self.steps = StepCounts()
        self.registry = CollectorRegistry()
        self._gauges = gauges
        self.service = ServiceMetrics(clock)
        self._inter_token = BatchHistogram(_TOKEN_S)
        self._make_series()
        self._handlers = self._make_handlers()
        self.registry.register(self)

    def _make_series(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"kerneld_{name}", text, labels, registry=self.registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"kerneld_{name}_seconds", text, buckets=_LATENCY_S, registry=self.registry)

        self._success = counter("request_success", "Requests that ended, by reason.", "finished_reason")
        self._first_token = seconds("time_to_first_token", "From arrival to the first output token.")
        self._end_to_end = seconds("e2e_request_latency", "From arrival to the end.")
        self._queue = seconds("request_queue_time", "Waiting, all of a request's waits together.")
        self._cached = counter("prompt_tokens_cached", "Input tokens that needed no computing.")
        self._prefix_queries = counter("prefix_cache_queries", "Input tokens for which known pages were looked up.")
        self._prefix_hits = counter("prefix_cache_hits", "Of these, tokens whose pages were known, and were not computed again.")
        self._preemptions = counter("num_preemptions", "Requests that ran and had to wait again, by cause.", "cause")
        self._evicted = counter("pages_evicted", "Pages that left the device, dropped ones included.")
        self._restored = counter("pages_restored", "Pages that came back to the device.")
        self._recomputed = counter("pages_recomputed", "Pages that were lost and computed again.")
        self._dropped = counter("pages_dropped", "Pages that left the device and were nowhere else.")
        self._corrupt = counter("pages_corrupt", "Pages that did not hold their checksum.", "tier")
        self._moved = counter("disk_pages", "Pages that went to the disk tier or came from it.", "action")
        self._moved_bytes = counter("disk_bytes", "Bytes that went to the disk tier or came from it.", "action")
        self._disk_failures = counter("disk_failures", "Pages that the disk did not take or did not give.", "action")
        self._failed_contexts = counter("contexts_failed", "Contexts that can be used no more.")
        self._losses = counter("worker_restarts", "Workers that were lost, by device.", "device")
        self._recovery = seconds("worker_recovery", "From the loss of a worker to its work going on.")
        self._loads = seconds("model_load", "Loading a model.")
        self._loaded = counter("model_loaded_bytes", "Bytes of weights loaded, by where they came from.", "source")
        self._evictions = counter("model_evictions", "Models that left the device for another one.")
        self._parked = counter("model_parked_bytes", "Bytes of weights put into the host tier.")
        self._bad_images = counter("model_image_corrupt", "Segments of weights in the host tier that did not hold their checksum.")
        self._images = counter("images", "Images written and restored.", "verb")

    def _make_handlers(self) -> dict[type[Event], Callable[..., None]]:
        return {
            RequestFinished: self._on_finished,
            RequestAdmitted: lambda event: self._cached.inc(event.cached_tokens),
            FirstTokenSampled: lambda event: self._first_token.observe(event.seconds),
            RequestPreempted: lambda event: self._preemptions.labels(event.cause).inc(),
            PagesEvicted: self._on_evicted,
            PagesRestored: self._on_restored,
            PrefixLooked: self._on_prefix_looked,
            PageFoundCorrupt: lambda _event: self._corrupt.labels("host").inc(),
            DiskPageCorrupt: lambda _event: self._corrupt.labels("disk").inc(),
            PagesSpilled: lambda event: self._on_moved("spill", event),
            PagesFetched: lambda event: self._on_moved("fetch", event),
            DiskTierFailed: lambda event: self._disk_failures.labels(event.action).inc(event.num_pages),
            ContextFailed: lambda _event: self._failed_contexts.inc(),
            WorkerLost: lambda event: self._losses.labels(event.device).inc(),
            WorkerRecovered: lambda event: self._recovery.observe(event.seconds),
            ModelLoaded: self._on_loaded,
            ModelEvicted: lambda _event: self._evictions.inc(),
            ModelParked: lambda event: self._parked.inc(event.size_bytes),
            ImageWritten: lambda _event: self._images.labels("checkpoint").inc(),
            ImageRestored: lambda _event: self._images.labels("restore").inc(),
        }

    def on_event(self, event: Event) -> None:
        """Take an event of the bus."""
        self.service.on_event(event)
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def observe_step(self, prompt_tokens: int, generation_tokens: int, compute_s: float, token_gap_s: float) -> None:
        """One step is done; `token_gap_s` is the time since the step before it, which every row that generated waited."""
        steps = self.steps
        steps.steps += 1
        steps.prompt_tokens += prompt_tokens
        steps.generation_tokens += generation_tokens
        steps.compute_s += compute_s
        self._inter_token.observe(token_gap_s, generation_tokens)

    def render(self) -> bytes:
        """The page as Prometheus scrapes it."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Series that are read off when asked for; called by the registry."""
        yield from self._step_families()
        text, gaps = "Between two output tokens of a request.", self._inter_token
        yield HistogramMetricFamily("kerneld_inter_token_latency_seconds", text, buckets=gaps.buckets(), sum_value=gaps.total)
        gauges = self._gauges()
        yield from self._gauge_families(gauges)
        yield from self.service.families(gauges.fair)

    def describe(self) -> Iterable[Metric]:
        """Nothing to say in advance: the names of `collect` are no other's."""
        return ()

    def _on_finished(self, event: RequestFinished) -> None:
        self._success.labels(event.reason.value).inc()
        self._end_to_end.observe(event.total_s)
        self._queue.observe(event.queue_s)

    def _on_loaded(self, event: ModelLoaded) -> None:
        self._loads.observe(event.seconds)
        self._loaded.labels("host").inc(event.host_bytes)
        self._loaded.labels("disk").inc(event.size_bytes - event.host_bytes)
        self._bad_images.inc(event.num_corrupt)

    def _on_prefix_looked(self, event: PrefixLooked) -> None:
        self._prefix_queries.inc(event.num_tokens)
        self._prefix_hits.inc(event.num_shared)

    def _on_evicted(self, event: PagesEvicted) -> None:
        self._evicted.inc(event.num_pages)
        self._dropped.inc(event.num_dropped)

    def _on_moved(self, action: str, event: PagesSpilled | PagesFetched) -> None:
        self._moved.labels(action).inc(event.num_pages)
        self._moved_bytes.labels(action).inc(event.size_bytes)

    def _on_restored(self, event: PagesRestored) -> None:
        self._restored.inc(event.num_pages)
        self._recomputed.inc(event.num_recomputed)

    def _step_families(self) -> Iterator[Metric]:
        steps = self.steps
        yield CounterMetricFamily("kerneld_steps", "Forward passes.", value=steps.steps)
        yield CounterMetricFamily("kerneld_prompt_tokens", "Input tokens computed.", value=steps.prompt_tokens)
        yield CounterMetricFamily("kerneld_generation_tokens", "Output tokens.", value=steps.generation_tokens)
        yield CounterMetricFamily("kerneld_compute_seconds", "Seconds inside forward passes.", value=steps.compute_s)

    def _gauge_families(self, gauges: Gauges) -> Iterator[Metric]:
        yield GaugeMetricFamily("kerneld_num_requests_running", "Requests that run.", value=gauges.running)
        yield GaugeMetricFamily("kerneld_num_requests_waiting", "Requests that wait.", value=gauges.waiting)
        yield GaugeMetricFamily("kerneld_num_contexts", "Contexts that live.", value=gauges.contexts)
        yield GaugeMetricFamily("kerneld_kv_cache_usage_perc", "Share of the device's KV memory in use, 0 to 1.", value=gauges.kv_usage)
        memory = GaugeMetricFamily("kerneld_memory_bytes", "Bytes in use, by tier and kind.", labels=["tier", "kind"])
        for (tier, kind), size in gauges.tier_bytes.items():
            memory.add_metric([tier, kind], size)
        yield memory
        quarantined = GaugeMetricFamily(
            "kerneld_ops_quarantined", "Implementations of ops that disagreed with their definitions.", labels=["device"]
        )
        for device, num in gauges.quarantined.items():
            quarantined.add_metric([device], num)
        yield quarantined
        if gauges.devices:
            yield from _device_families(gauges.devices)


def _device_families(devices: Mapping[str, DeviceGauges]) -> Iterator[Metric]:
    """What is told of each of several devices; with one there are none of these."""
    figures: dict[str, tuple[str, Callable[[DeviceGauges], float]]] = {
        "up": ("Whether its worker runs: 1 or 0.", lambda device: device.is_running),
        "requests_running": ("Requests that run on a device.", lambda device: device.running),
        "requests_waiting": ("Requests that wait for a device.", lambda device: device.waiting),
        "busy": ("Part of the last seconds in which a device computed, 0 to 1.", lambda device: device.busy),
    }
    for name, (text, figure_of) in figures.items():
        family = GaugeMetricFamily(f"kerneld_device_{name}", text, labels=["device"])
        for device, gauges in devices.items():
            family.add_metric([device], figure_of(gauges))
        yield family
    memory = GaugeMetricFamily(
        "kerneld_device_memory_bytes", "Bytes in use on a device, by tier and kind.", labels=["device", "tier", "kind"]
    )
    for device, gauges in devices.items():
        for (tier, kind), size in gauges.tier_bytes.items():
            memory.add_metric([device, tier, kind], size)
    yield memory
