"""UsageBook: the accounts of usage of one daemon: what they are fed by, what is written of them, and the long-term factors.

    steps       -> DeviceTime --.
    requests that ended --------+-> UsageAccounts --- every 15 s, in one transaction ---> database (kerneld.state.usagestore)
    the ledger  -> PageSeconds -+        ^
    fair shares -> settle ------+--------'-> DecayedUsage --- every 5 minutes ---> FairShare.set_factor
    loads ----------------------'

Service is not counted but read: the difference of what a share account shows and what it showed when it was looked at last. Accounts are
durable with every step, so that difference is exact after a kill -9 too; everything else loses what the last 15 seconds brought.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from drivers.contract import StepResult
from kerneld.fairshare import FairShare
from kerneld.pricing.tariffs import Tariffs
from kerneld.request import Request
from kerneld.rows import Flight
from kerneld.state.tables import TenantRow
from kerneld.state.usagestore import UsageBatch, UsageKept, UsageQuery, UsageStore
from kerneld.usage.accounts import UsageAccounts
from kerneld.usage.amounts import SYSTEM, Amounts, Bucket, hour_of
from kerneld.usage.decay import DAY_S, DecayedUsage, UsageClock, own_node
from kerneld.usage.devicetime import DeviceTime
from kerneld.usage.longterm import ONE_MILLI, factors
from kerneld.usage.pageseconds import PageSeconds
from memory.ledger import Ledger
from memory.page import Tier


@dataclass(frozen=True, slots=True)
class UsagePolicy:
    """What an administrator may set."""

    half_life_days: float = 7.0
    keep_days: int = 400
    has_factors: bool = True  # whether long-term factors follow from usage; all are 1 else


@dataclass(frozen=True, slots=True)
class UsageClocks:
    """The two clocks: hours and half-lives go by the time of day, what is held for how long by one that nobody sets."""

    unix: Callable[[], float]
    monotonic: Callable[[], float] = time.monotonic


class UsageBook:
    """Event-loop thread only."""

    def __init__(self, policy: UsagePolicy, clocks: UsageClocks, shares: FairShare, ledgers: Sequence[Ledger], tariffs: Tariffs) -> None:
        self._policy, self._clocks, self._shares = policy, clocks, shares
        self.accounts = UsageAccounts(clocks.unix)
        self._clock = UsageClock(clocks.unix)
        self.decayed = DecayedUsage(self._clock, policy.half_life_days * DAY_S)
        self._device_time = DeviceTime(tariffs.get, self._give_device)
        self._page_seconds = [PageSeconds(ledger, clocks.monotonic) for ledger in ledgers]
        self._weights: dict[str, dict[str, int]] = {}  # of the children of every node, by their paths
        self._write: asyncio.Future[None] | None = None  # the last one
        self._writing = asyncio.Lock()  # no batch is between memory and database while somebody reads both

    # ------------------------------------------------------------------------------------------------------------------- tenants

    def know(self, tenant: TenantRow) -> None:
        """A tenant is there, or its weight changed."""
        self.accounts.know(tenant.path, tenant.created_at)
        self._weights.setdefault(_parent(tenant.path), {})[tenant.path] = tenant.weight

    def forget(self, path: str) -> None:
        """A tenant was removed."""
        self.accounts.forget(path)
        self.decayed.forget(path)
        siblings = self._weights.get(_parent(path), {})
        siblings.pop(path, None)
        if not siblings:
            self._weights.pop(_parent(path), None)

    def restore(self, kept: UsageKept) -> None:
        """Take over what was written, when all tenants are known and their share accounts are restored.

        Service that is in those accounts and was not written is used now. Factors are in them too, and stay until the next update.
        """
        self.accounts.restore(kept.totals)
        self._clock = UsageClock(self._clocks.unix, kept.clock)
        self.decayed.restore(self._clock, kept.decayed)
        for path in self.accounts:
            self.accounts.begin_service(path, self._shares.own_service(path))
        self.settle()
        if not self._policy.has_factors:
            self.update_factors()

    # ------------------------------------------------------------------------------------------------------------------ what is told

    def heard(self, flight: Flight, step_idx: int, result: StepResult) -> None:
        """A step of a plan is done, or a plan of no steps; positions of rows have not moved yet."""
        self._device_time.heard(flight, step_idx, result)

    def ended(self, request: Request) -> None:
        """A request has ended."""
        self._device_time.ended(request)
        self.accounts.note_request(request.tenant, request.usage())

    def load_payer(self, path: str) -> None:
        """A tenant, or the system, pays for a load of a model, or a part of it. Once a load."""
        self.accounts.of(path).loads += 1

    def load_charged(self, path: str, load_us: int) -> None:
        """A tenant, or the system, was charged for a load of a model."""
        self.accounts.of(path).load_us += load_us

    def _give_device(self, path: str, device_us: int) -> None:
        self.accounts.of(path).device_us += device_us

    # ------------------------------------------------------------------------------------------------------------- from time to time

    def sample(self) -> None:
        """Count the pages that were held since the last time. About once a second."""
        for owner, tier, page_ms in chain.from_iterable(pages.sample() for pages in self._page_seconds):
            amounts = self.accounts.of(owner)
            if tier is Tier.DEVICE:
                amounts.device_page_ms += page_ms
            elif tier is Tier.HOST:
                amounts.host_page_ms += page_ms
            else:
                amounts.disk_page_ms += page_ms

    def settle(self) -> None:
        """See what was charged since the last time."""
        for path in self.accounts:
            charged_us = self.accounts.note_service(path, self._shares.own_service(path))
            if charged_us:
                self.decayed.charge(path, charged_us)

    def update_factors(self) -> None:
        """Set every node's factor by what it and its siblings used of late. Every few minutes: a factor is a policy, not a control loop."""
        self.settle()
        for parent in self._weights:
            for path, milli in self._factors(parent).items():
                self._shares.set_factor(path, milli)

    def used_us(self, parent: str) -> dict[str, float]:
        """What the competitors under a node have used, decayed: its children, and its own requests once there were some."""
        paths = list(self._weights.get(parent, {}))
        if parent and self.decayed.value_us(own_node(parent)):
            paths.append(own_node(parent))
        return {path: self.decayed.value_us(path) for path in paths}

    def weights(self, parent: str, competitors: Iterable[str]) -> dict[str, int]:
        """The weights of competitors under a node; a node's own requests weigh 1."""
        known = self._weights.get(parent, {})
        return {path: known.get(path, 1) for path in competitors}

    def _factors(self, parent: str) -> dict[str, int]:
        used_us = self.used_us(parent)
        weights = self.weights(parent, used_us)
        return factors(weights, used_us) if self._policy.has_factors else dict.fromkeys(weights, ONE_MILLI)

    # ---------------------------------------------------------------------------------------------------------- reading and writing

    async def read(self, store: UsageStore, query: UsageQuery) -> list[tuple[Bucket, Amounts]]:
        """The first amounts that a query asks for, as if all that was used had been written. Raises: what a store raises."""
        self.settle()
        async with self._writing:
            found = await store.read(query)
        for bucket, amounts in self.accounts.unwritten().items():
            span = Bucket(bucket.tenant, bucket.born, query.span_of(bucket.hour))
            if query.since <= bucket.hour < query.until and _key(span) > _key(query.after) and self._is_asked(query, bucket):
                found.setdefault(span, Amounts()).add(amounts)
        return sorted(found.items(), key=lambda item: _key(item[0]))[: query.limit]

    async def has_history(self, store: UsageStore, tenant: str) -> bool:
        """Whether anything is known of a tenant of that name or beneath it, removed ones too. Raises: what a store raises."""
        async with self._writing:
            return any(_is_within(bucket.tenant, tenant) for bucket in self.accounts.unwritten()) or await store.has_history(tenant)

    async def write(self, store: UsageStore) -> None:
        """Write what was used since the last time. Raises: what a store raises; then it counts as not written.

        A caller that is cancelled does not cancel the writing: the store would go on with it, and it would be counted twice.
        """
        self._write = asyncio.ensure_future(self._written(store))
        await asyncio.shield(self._write)

    async def _written(self, store: UsageStore) -> None:
        self.settle()
        async with self._writing:
            amounts, totals = self.accounts.take()
            changed, clock = self.decayed.take_changed()
            batch = UsageBatch(amounts, totals, changed, clock)
            if not batch:
                return
            try:
                await store.write(batch)
            except BaseException:
                self.accounts.put_back(amounts)
                self.decayed.put_back(changed)
                raise

    async def forget_old(self, store: UsageStore) -> None:
        """Drop hours that are too old, unless the time of day is in doubt. Raises: what a store raises."""
        if self._clock.is_trusted:
            await store.forget(hour_of(self._clocks.unix() - self._policy.keep_days * DAY_S))

    def _is_asked(self, query: UsageQuery, bucket: Bucket) -> bool:
        """What `kerneld.state.usagestore` asks of a row, asked of an amount that is not written."""
        path, viewer = bucket.tenant, query.viewer
        if query.tenant and not _is_within(path, query.tenant):
            return False
        is_living = path != SYSTEM and self.accounts.born(path) == bucket.born
        return viewer is None or (is_living and (_is_within(path, viewer) or _is_within(viewer, path)))


def _key(bucket: Bucket) -> tuple[int, str, float]:
    return bucket.hour, bucket.tenant, bucket.born


def _is_within(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(ancestor + "/")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
