"""A run of a workload under each scheduling, and what is shown of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kerneld.simulation.arrivals import jobs_of
from kerneld.simulation.measures import Books, Measures, claims_of, mean, percentile, ttfts
from kerneld.simulation.records import Record
from kerneld.simulation.workload import Workload
from kerneld.simulation.world import Scheduling, World


@dataclass(frozen=True, slots=True)
class TenantFigures:
    """What one tenant had under one scheduler. Times of a tenant that had no token are None."""

    tenant: str
    scheduler: str
    num_requests: int
    num_served: int
    mean_ttft_s: float | None
    p50_ttft_s: float | None
    p99_ttft_s: float | None
    service: float
    share: float  # of all service
    worst_lag: float


@dataclass(frozen=True, slots=True)
class Run:
    """One workload under one scheduler."""

    scheduling: Scheduling
    records: Sequence[Record]
    books: Books
    measures: Measures
    num_steps: int
    busy_s: float  # of the device

    def tenants(self) -> list[TenantFigures]:
        """Figures by tenant, in the order of the workload."""
        books = self.books
        lags, services = books.worst_lags(), books.totals()
        total = sum(services.values()) or 1.0
        return [self._tenant(tenant, services[tenant], services[tenant] / total, lags[tenant]) for tenant in books.claims]

    def _tenant(self, tenant: str, service: float, share: float, lag: float) -> TenantFigures:
        records = self.books.of[tenant]
        waits = ttfts(records)
        return TenantFigures(
            tenant=tenant,
            scheduler=self.scheduling.value,
            num_requests=len(records),
            num_served=len(waits),
            mean_ttft_s=mean(waits),
            p50_ttft_s=percentile(waits, 0.5),
            p99_ttft_s=percentile(waits, 0.99),
            service=service,
            share=share,
            worst_lag=lag,
        )


def simulate(workload: Workload, scheduling: Scheduling) -> Run:
    """Run a workload under one scheduler."""
    world = World(workload, scheduling)
    records = world.run(jobs_of(workload))
    books = Books(records, workload.duration_s, claims_of(workload.tenants, workload.senders))
    return Run(scheduling, records, books, books.measures(), world.device.num_steps, world.device.busy_s)
