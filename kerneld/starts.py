"""Starts: follows requests from their arrival to their first start, and says of those that wait when they start.

    waits --> its start is estimated, what it will be charged counts as work ahead of others --> admitted: the estimate is judged
                                                                                              '-> ended before: it is forgotten

`tick` once a second measures the rate at which work is done, keeps the last minute of everybody's service, and prices anew what waits.
Where a request waits for something that no share brings nearer (a model, pages, a prefix, a limit), nobody can say when it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Protocol

from kerneld.estimate import Estimator, Level, Rival
from kerneld.events import Event, RequestAdmitted, RequestArrived, RequestFinished, TariffChanged
from kerneld.holdings import StartEstimate
from kerneld.picture import Picture
from kerneld.pricing.charging import Charging
from kerneld.request import Place, Request
from kerneld.servicewindow import ServiceWindow
from kerneld.sharemap import ShareMap, own_path, weight_of
from kerneld.standings import Standing
from kerneld.tally import Tally, ancestors

# A picture of the shares serves so long: a thousand arrivals in a second take it four times.
MAP_LIFETIME_S: Final = 0.25
MEAN_OF: Final = 64  # outputs
MOST_AHEAD: Final = 512  # looking further in the line would keep others waiting
REPRICED: Final = 256  # requests a second, which takes some 2 ms
# Of arrivals one is judged in so long: with 1,000 tenants that wait an estimate takes half a millisecond.
JUDGE_EVERY_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class _Expected:
    """What was expected of a request when it began to wait."""

    tenant: str
    cost_us: int
    wait_s: float | None  # None: nobody could say, or it is not judged


class Queues(Protocol):
    """A scheduler, or all of them."""

    charging: Charging
    running: Tally

    @property
    def num_ready(self) -> int: ...
    def standings(self) -> list[Standing]: ...
    def line(self, limit: int) -> Iterator[Request]: ...


class Starts:
    """Event-loop thread only."""

    def __init__(
        self,
        scheduler: Queues,
        requests: Mapping[str, Request],
        max_rows: int,
        clock: Callable[[], float],
        is_mine: Callable[[Request], bool] = lambda _request: True,
    ) -> None:
        """`clock` never goes back; `requests` are those that have not ended, by id; `is_mine` says which of them are on this device."""
        self.estimator = Estimator()
        self.window = ServiceWindow()
        self._scheduler = scheduler
        self._requests = requests
        self._is_mine = is_mine
        self._max_rows = max_rows
        self._clock = clock
        self._expected: dict[str, _Expected] = {}  # by request id, those that were priced longest ago first
        self._begun: dict[str, Request] = {}  # by request id: those that were admitted
        self._backlog_us: dict[str, int] = {}  # by path of a node, hidden ones too
        self._mean_output = 0.0  # tokens of the requests that ended
        self._map = ShareMap(())
        self._mapped_at = float("-inf")
        self._next_s: dict[str, float | None] = {}  # by tenant: who is refused asks again and again
        self._places: Picture[Mapping[str, int]] = Picture(self._draw_places)
        self._seen: tuple[str, tuple[Level, ...]] | None = None  # the tenant that was asked for last, as nothing has changed since
        self._judged_at = float("-inf")  # when a request came whose estimate is judged
        self._ticked: tuple[float, int, bool] | None = None  # when, what was done by then, and whether somebody waited

    # ------------------------------------------------------------------------------------------------------------------ what happens

    def on_event(self, event: Event) -> None:
        """Take an event of the bus."""
        if isinstance(event, RequestArrived):
            request = self._requests.get(event.request)
            if request is not None and self._is_mine(request):
                self.arrived(request)
        elif isinstance(event, RequestAdmitted):
            expected, request = self._forget(event.request), self._requests.get(event.request)
            if request is not None and self._is_mine(request):
                self._begun[request.id] = request
            if expected is not None:
                self.estimator.note_admission(expected.cost_us)
                if expected.wait_s is not None:
                    self.estimator.note_start(expected.wait_s, event.queue_s)
        elif isinstance(event, RequestFinished):
            self._forget(event.request)
            self._begun.pop(event.request, None)
            if event.output_tokens:
                self._mean_output += (event.output_tokens - self._mean_output) / (MEAN_OF if self._mean_output else 1)
        elif isinstance(event, TariffChanged):
            # What was measured by the old prices says nothing, and what waits costs something else.
            self.estimator.forget_rate()
            self._ticked = None
            self._reprice(len(self._expected))

    def arrived(self, request: Request) -> None:
        """A request waits, or is back after a restart."""
        if request.is_charged:
            self._begun[request.id] = request
        if request.is_charged or request.id in self._expected:
            return
        tenant = request.tenant
        wait_s, now = None, self._clock()
        if request.place is Place.LINE and now - self._judged_at >= JUDGE_EVERY_S:
            wait_s, self._judged_at = self._seconds(tenant, self._backlog_us.get(own_path(tenant), 0)), now
        self._expect(request.id, _Expected(tenant, self._cost_us(request), wait_s))

    def tick(self) -> None:
        """Measure, and price anew; once a second. Until something better is known, what is done while nobody waits is the rate."""
        now, scheduler = self._clock(), self._scheduler
        shares = self.map(0.0)
        self.window.note(now, shares.nodes.values())
        has_line = bool(shares.active)
        # Prepaid output is work to come: without it, what is charged comes in lumps, and an idle second is followed by a busy one.
        done_us = shares.total_us - sum(map(scheduler.charging.prepaid_us, self._begun.values()))
        if self._ticked is not None:
            before, done_before_us, had_line = self._ticked
            is_full = has_line and had_line
            if now > before and (is_full or (self.estimator.rate is None and scheduler.running.total)):
                self.estimator.note_rate(done_us - done_before_us, now - before)
        self._ticked = now, done_us, has_line
        self._reprice(REPRICED)

    def _expect(self, request_id: str, expected: _Expected) -> None:
        self._expected[request_id] = expected
        self._seen = None
        for path in _paths(expected.tenant):
            self._backlog_us[path] = self._backlog_us.get(path, 0) + expected.cost_us

    def _cost_us(self, request: Request) -> int:
        """What a request will have been charged in the end. Where nothing is known of its tenant's outputs, they are like everybody's."""
        charging = self._scheduler.charging
        cost_us = charging.expected_cost(request, min(request.context.kv_valid, request.output_start))
        if charging.forecast.of(request.tenant) or request.is_scoring:
            return cost_us
        num_output = min(request.max_tokens, round(self._mean_output) or request.max_tokens)
        return cost_us + charging.tariffs.get(request.context.priced_as).output_us(request.output_start, num_output)

    def _reprice(self, most: int) -> None:
        """Those that were priced longest ago are priced anew: the outputs of their tenants have told more since."""
        for request_id in list(islice(self._expected, most)):
            expected, request = self._forget(request_id), self._requests.get(request_id)
            if expected is not None and request is not None:
                self._expect(request_id, replace(expected, cost_us=self._cost_us(request)))

    def _forget(self, request_id: str) -> _Expected | None:
        expected = self._expected.pop(request_id, None)
        if expected is not None:
            self._seen = None
            for path in _paths(expected.tenant):
                left = self._backlog_us.get(path, 0) - expected.cost_us
                if left > 0:
                    self._backlog_us[path] = left
                else:
                    self._backlog_us.pop(path, None)
        return expected

    # ------------------------------------------------------------------------------------------------------------------ when

    def estimate(self, request: Request, position: int) -> StartEstimate:
        """When a waiting request starts that is at this place of its tenant's line, from 1."""
        if request.place is Place.FRONT:
            return self.estimator.estimate(0.0)
        if request.place is not Place.LINE:
            return self.estimator.estimate(None)
        own = self.map().nodes.get(own_path(request.tenant))
        num_waiting = max(own.num_waiting if own is not None else 1, position)
        ahead_us = self._backlog_us.get(own_path(request.tenant), 0) * (position - 1) // num_waiting
        return self.estimator.estimate(self._seconds(request.tenant, ahead_us))

    def next_s(self, path: str) -> float | None:
        """When the next one of those starts that wait below a tenant, "": of all; None: unknown."""
        self.map()
        if path not in self._next_s:
            self._next_s[path] = self._seconds(path, 0) if path else self.estimator.seconds(0, ())
        return self._next_s[path]

    def places(self) -> Mapping[str, int]:
        """The places in the whole line of the first `MOST_AHEAD`, from 1, by request id and in order; `map` is as it was then, or later."""
        return self._places.look()

    def _draw_places(self) -> Mapping[str, int]:
        self.map(0.0)
        return {request.id: idx for idx, request in enumerate(self._scheduler.line(MOST_AHEAD), start=1)}

    def map(self, lifetime_s: float = MAP_LIFETIME_S) -> ShareMap:
        """The tree of shares, as it was at most so long ago."""
        now = self._clock()
        if now - self._mapped_at >= lifetime_s:
            self._map, self._mapped_at = ShareMap(self._scheduler.standings()), now
            self._next_s.clear()
            self._seen = None
        return self._map

    def _seconds(self, tenant: str, own_us: int) -> float | None:
        """Seconds to the start of a request in line that has `own_us` of its tenant's work ahead of it; None: unknown."""
        if any(node.num_waiting and not node.is_active for node in self.map().lineage(tenant)):  # at a limit: one of its own has to end
            return None
        if self._scheduler.num_ready <= 1 and self._scheduler.running.total < self._max_rows:
            return 0.0
        return self.estimator.seconds(own_us, self._levels(tenant))

    def _levels(self, tenant: str) -> tuple[Level, ...]:
        shares = self.map()
        if self._seen is None or self._seen[0] != tenant:
            self._seen = tenant, tuple(self._look(shares, tenant))
        return self._seen[1]

    def _look(self, shares: ShareMap, tenant: str) -> Iterator[Level]:
        for own in shares.lineage(tenant):
            siblings = [self._rival(each) for each in shares.siblings(own.path)]
            mine = self._rival(own)
            if not own.is_active and siblings:  # it was idle when the picture was taken: it is lifted to the least of the others
                least = min(rival.counter_us for rival in siblings)
                mine = Rival(max(mine.counter_us, least), mine.weight, mine.backlog_us)
            yield Level(mine, siblings)

    def _rival(self, node: Standing) -> Rival:
        return Rival(node.counter_us, weight_of(node), self._backlog_us.get(node.path, 0))


def _paths(tenant: str) -> Iterator[str]:
    """The nodes at which a request of a tenant counts."""
    yield own_path(tenant)
    yield from ancestors(tenant)
