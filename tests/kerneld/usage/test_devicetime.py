"""The time of steps goes to those for whom they computed, by what that is worth, and all of it goes to somebody."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from drivers.contract import CopyTimes, RowResult, StepResult
from drivers.wire import NO_STEP
from kerneld.pricing.tariff import UNCALIBRATED, Tariff
from kerneld.request import Request, RequestState
from kerneld.rows import Flight, Part, Row
from kerneld.usage.amounts import SYSTEM
from kerneld.usage.devicetime import DeviceTime
from memory.page import Space
from memory.table import PageTable

TABLE = PageTable("lab", (Space(1, 4, 256, 256),))
NO_COPIES = CopyTimes()
MakeRequest = Callable[..., Request]


class Bench:
    """Device time, and who got how much of it."""

    def __init__(self, tariff: Tariff = UNCALIBRATED) -> None:
        self.given_us: Counter[str] = Counter()
        self.time = DeviceTime(lambda _model: tariff, self._give)
        self.seq = 0

    def _give(self, path: str, device_us: int) -> None:
        assert device_us >= 0
        self.given_us[path] += device_us

    def run(self, rows: list[tuple[Row, int]], seconds: float, copies: CopyTimes = NO_COPIES, errors: tuple[int, ...] = ()) -> None:
        """A plan of one step that computes so many tokens of each row; then positions move."""
        self.seq += 1
        parts = {row.slot: Part(row, num_tokens, num_tokens, 0) for row, num_tokens in rows}
        results = tuple(RowResult(slot, error="bad" if slot in errors else "") for slot in parts)
        total = sum(num_tokens for _row, num_tokens in rows)
        self.time.heard(Flight(self.seq, 1, parts), 0 if rows else NO_STEP, StepResult(results, seconds, total, copies=copies))
        for row, num_tokens in rows:
            row.position += num_tokens


def seated(request: Request, slot: int, position: int = 0) -> Row:
    """A request in a row."""
    return Row(request, slot, TABLE, position, request.context.num_tokens, request.num_remaining)


def test_a_step_is_split_by_what_its_tokens_are_worth(make_request: MakeRequest) -> None:
    bench = Bench(Tariff(input_ns=10_000, cached_ns=0, output_ns=20_000))
    ann, bob = seated(make_request("ann", num_input=6), 0), seated(make_request("bob", num_input=3), 1, position=3)
    bench.run([(ann, 6), (bob, 1)], 0.008)  # six tokens of input, one of output
    assert bench.given_us == {"ann": 6000, "bob": 2000}


def test_a_token_further_on_is_worth_more_where_looking_back_costs(make_request: MakeRequest) -> None:
    bench = Bench(Tariff(input_ns=1000, cached_ns=0, output_ns=1000, context_ns=1000))
    near, far = seated(make_request("near", num_input=9), 0), seated(make_request("far", num_input=9), 1, position=8)
    bench.run([(near, 1), (far, 1)], 0.010)
    assert bench.given_us == {"near": 1000, "far": 9000}


def test_what_was_computed_before_is_the_systems(make_request: MakeRequest) -> None:
    bench = Bench()
    request = make_request("ann", num_input=10)
    row = seated(request, 0)
    bench.run([(row, 8)], 0.008)
    row.is_over = True  # it was preempted
    bench.run([(seated(request, 0), 10)], 0.010)
    assert bench.given_us == {"ann": 8000 + 2000, SYSTEM: 8000}
    bench.time.ended(request)
    bench.run([(seated(request, 0), 10)], 0.010)
    assert bench.given_us["ann"] == 20_000


def test_what_was_found_in_memory_and_lost_later_is_the_systems(make_request: MakeRequest) -> None:
    bench = Bench()
    request = make_request("ann", num_input=10)
    bench.run([(seated(request, 0, position=9), 1)], 0.001)
    bench.run([(seated(request, 0), 10)], 0.010)
    assert bench.given_us == {"ann": 1000, SYSTEM: 10_000}


@pytest.mark.parametrize(("state", "payer"), [(RequestState.FINISHED, "ann"), (RequestState.QUEUED, SYSTEM)])
def test_a_step_of_a_row_that_had_left_is_paid_by_whoever_made_it_leave(make_request: MakeRequest, state: RequestState, payer: str) -> None:
    bench = Bench()
    request = make_request("ann", num_input=4)
    row = seated(request, 0)
    row.is_over, request.state = True, state
    bench.run([(row, 4)], 0.004)
    assert bench.given_us == {payer: 4000}
    bench.run([(seated(request, 0), 4)], 0.004)
    assert bench.given_us["ann"] == (8000 if payer == "ann" else 4000)  # nothing was remembered of it


def test_copies_and_steps_that_failed_are_the_systems(make_request: MakeRequest) -> None:
    bench = Bench()
    bench.run([], 0.0, CopyTimes(1, 0.001, 1, 0.002))
    assert bench.given_us == {SYSTEM: 3000}
    bench.run([(seated(make_request("ann"), 0), 4), (seated(make_request("bob"), 1), 4)], 0.002, errors=(0,))
    assert bench.given_us == {SYSTEM: 3000, "bob": 2000}
    bench.run([(seated(make_request("ann"), 0), 4)], 0.005, errors=(0,))
    assert bench.given_us == {SYSTEM: 8000, "bob": 2000}


def test_all_that_was_measured_is_given_to_somebody_to_the_microsecond(make_request: MakeRequest) -> None:
    rng = random.Random(7)
    bench, total_s = Bench(Tariff(7001, 11, 9007, 3)), 0.0
    requests = [make_request(name, num_input=400) for name in ("ann", "bob", "eve")]
    for _ in range(500):
        rows = [
            (seated(request, slot, rng.randrange(300)), rng.randrange(1, 90)) for slot, request in enumerate(requests) if rng.random() < 0.7
        ]
        seconds = rng.random() / 300 if rows else 0.0
        total_s += seconds
        bench.run(rows, seconds)
    assert 0 <= total_s * 1e6 - sum(bench.given_us.values()) < 1.001
