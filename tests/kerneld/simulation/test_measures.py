"""The measures of a run, on records made by hand."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from kerneld.simulation.measures import Books, claims_of, mean, percentile
from kerneld.simulation.records import Outcome, Record, read_records, write_records
from kerneld.simulation.workload import Phase, TenantLoad

SENDS = (Phase(1.0),)


def record(
    tenant: str, arrival_s: float, first_s: float | None = None, finish_s: float | None = None, tokens: tuple[int, int] = (10, 10)
) -> Record:
    """A request that finished, or waits if it has no times."""
    outcome = Outcome.WAITING if first_s is None else Outcome.FINISHED
    came = 0 if first_s is None else tokens[1]
    return Record(1, tenant, "hvtc", arrival_s, tokens[0], tokens[1], outcome, first_s, finish_s, came)


def books(*records: Record, duration_s: float = 100.0, **claims: float) -> Books:
    return Books(records, duration_s, claims or {"a": 1.0, "b": 1.0})


def test_input_counts_at_the_first_token_and_output_evenly_until_the_finish() -> None:
    # a: 10 at 1, then 20 until 11, 30 in all; b: 40 at 6. Just before 6, a had 10 + 10.
    measured = books(record("a", 0.0, 1.0, 11.0), record("b", 0.0, 6.0, 6.0, (40, 0))).measures()

    assert measured.max_gap == pytest.approx(20.0)


def test_the_gap_is_seen_just_before_and_just_after_a_jump() -> None:
    assert books(record("a", 0.0, 1.0, 1.0, (50, 0)), record("b", 0.0, 1.0, 1.0, (50, 0))).measures().max_gap == 0.0
    assert books(record("a", 0.0, 1.0, 1.0, (50, 0)), record("b", 0.0, 1.5, 1.5, (80, 0))).measures().max_gap == 50.0


def test_the_gap_of_weighted_tenants_is_by_claim() -> None:
    served = record("a", 0.0, 1.0, 1.0, (30, 0)), record("b", 0.0, 1.0, 1.0, (90, 0))

    assert books(*served, a=1.0, b=3.0).measures().max_gap == 0.0


def test_output_of_no_length_in_time_counts_at_once() -> None:
    assert books(record("a", 0.0, 2.0, 2.0, (1, 3))).measures().max_gap == 7.0


def test_what_is_missed_is_at_most_what_is_wanted() -> None:
    hog = record("a", 0.0, 1.0, 1.0, (6000, 0))
    # b had nothing in the window and wanted 10 + 2 * 10; what a had more would be 6000.
    assert books(hog, record("b", 5.0), duration_s=60.0).measures().max_diff == pytest.approx(30 / 60)


def test_what_is_missed_is_at_most_what_the_best_served_had() -> None:
    waiting = [record("b", 1.0, tokens=(1000, 1000)) for _ in range(10)]

    assert books(record("a", 0.0, 1.0, 1.0, (600, 0)), *waiting, duration_s=60.0).measures().max_diff == pytest.approx(10.0)


def test_the_worst_window_counts() -> None:
    late = [record("a", 100.0, 101.0, 101.0, (1200, 0)), record("b", 100.0, tokens=(9000, 0))]

    assert books(*late, duration_s=200.0).measures().max_diff == pytest.approx(20.0)


def test_a_rejected_request_is_counted_and_wanted_by_nobody() -> None:
    rejected = replace(record("b", 1.0, tokens=(1000, 0)), outcome=Outcome.REJECTED)
    measured = books(record("a", 0.0, 1.0, 1.0, (600, 0)), rejected, duration_s=60.0).measures()

    assert (measured.rejected, measured.max_diff) == (1, 0.0)


def test_a_request_whose_deadline_passed_is_wanted_until_then() -> None:
    expired = replace(record("b", 1.0, tokens=(1000, 0)), outcome=Outcome.EXPIRED, finish_s=30.0)

    assert books(record("a", 0.0, 1.0, 1.0, (600, 0)), expired, duration_s=60.0).measures().max_diff == 0.0


def test_throughput_is_what_was_served_over_the_whole_run() -> None:
    assert books(record("a", 0.0, 1.0, 2.0), record("b", 0.0), duration_s=10.0).measures().tokens_per_s == 2.0


def test_first_tokens_are_averaged_by_tenant_and_none_is_none() -> None:
    measured = books(record("a", 0.0, 1.0, 2.0), record("a", 1.0, 4.0, 5.0), record("b", 0.0)).measures()

    assert measured.mean_ttft_s == {"a": 2.0, "b": None}


def test_no_requests_have_no_measures() -> None:
    measured = books().measures()

    assert (measured.max_gap, measured.max_diff, measured.tokens_per_s, measured.rejected) == (0.0, 0.0, 0.0, 0)
    assert books().worst_lags() == {"a": 0.0, "b": 0.0}


def test_the_worst_lag_is_what_a_tenant_was_behind_and_wanted() -> None:
    lags = books(record("a", 0.0, 1.0, 1.0, (600, 0)), record("b", 0.5, 50.0, 50.0, (100, 0))).worst_lags()

    assert lags == {"a": 0.0, "b": 100.0}


def test_claims_are_parts_of_the_machine_beside_the_least_one() -> None:
    flat = [TenantLoad("a", weight=2, phases=SENDS), TenantLoad("b", weight=6, phases=SENDS)]
    assert claims_of(flat, ["a", "b"]) == {"a": 1.0, "b": 3.0}

    tree = [
        TenantLoad("x", weight=1),
        TenantLoad("x/one", phases=SENDS),
        TenantLoad("x/two", phases=SENDS),
        TenantLoad("y", weight=3, phases=SENDS),
        TenantLoad("idle", weight=100),
    ]
    assert claims_of(tree, ["x/one", "x/two", "y"]) == {"x/one": 1.0, "x/two": 1.0, "y": 6.0}


def test_a_tenant_that_sends_itself_stands_beside_its_children() -> None:
    tree = [TenantLoad("x", phases=SENDS), TenantLoad("x/one", weight=3, phases=SENDS)]

    assert claims_of(tree, ["x", "x/one"]) == {"x": 1.0, "x/one": 3.0}


def test_percentiles_and_means() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 99.0
    assert percentile([], 0.5) is None
    assert mean([]) is None


def test_records_are_read_as_they_were_written() -> None:
    records = [record("a", 0.1, 0.2, 0.3), replace(record("b", 1 / 3), number=2)]
    file = io.StringIO()
    write_records(records, file)

    assert list(read_records(file.getvalue().splitlines())) == records
