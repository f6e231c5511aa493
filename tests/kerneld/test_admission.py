"""Limits of tenants: inherited down the tree, named with their holder, and exact about when to come back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kerneld.admission import Admission
from kerneld.calls import Limits
from kerneld.errors import QueueFull, QuotaExceeded
from kerneld.tally import Tally


@pytest.fixture
def waiting() -> Tally:
    return Tally()


@pytest.fixture
def admission(waiting: Tally, clock: Callable[[], float]) -> Admission:
    return Admission(waiting, max_queued=5, max_contexts=10, clock=clock)


def test_without_limits_everything_comes_in(admission: Admission) -> None:
    admission.check_context("lab/ann")
    admission.check_request("lab/ann", 1_000_000)


def test_contexts_are_limited_by_everybody_above(admission: Admission) -> None:
    admission.set_limits("lab", Limits(max_contexts=2))
    admission.set_limits("lab/ann", Limits(max_contexts=5))
    admission.contexts.add("lab/bob")
    admission.contexts.add("lab/ann")

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_context("lab/ann")

    assert caught.value.facts == {"limit": "max_contexts", "value": "2", "holder": "lab"}
    admission.check_context("other")


def test_the_daemon_bounds_all_contexts(admission: Admission) -> None:
    for i in range(10):
        admission.contexts.add(f"t{i}")

    with pytest.raises(QuotaExceeded, match="This daemon has 10 contexts"):
        admission.check_context("new")


def test_queues_are_bounded_by_tenant_and_by_the_daemon(admission: Admission, waiting: Tally) -> None:
    admission.set_limits("lab", Limits(max_queued=2))
    for path in ("lab/ann", "lab/bob"):
        waiting.add(path)

    with pytest.raises(QueueFull) as caught:
        admission.check_request("lab/ann", 1)
    for path in ("a", "b", "c"):
        waiting.add(path)
    with pytest.raises(QueueFull, match="this daemon"):
        admission.check_request("d", 1)

    assert (caught.value.facts["holder"], caught.value.retry_after_s) == ("lab", 1.0)


def test_requests_per_minute_say_when_the_next_may_come(admission: Admission, clock: Callable[[], float]) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=2))
    for path in ("lab/ann", "lab/bob"):
        admission.check_request(path, 1)
        admission.take_request(path, 1)

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab/ann", 1)

    assert caught.value.retry_after_s == pytest.approx(30.0)
    assert caught.value.facts == {"limit": "requests_per_minute", "value": "2", "holder": "lab"}


def test_output_is_taken_from_the_rate_and_delays_the_next_request(admission: Admission) -> None:  # invariant 3
    admission.set_limits("lab", Limits(tokens_per_minute=100))
    admission.check_request("lab", 40)
    admission.take_request("lab", 40)
    admission.take_tokens("lab", 90)

    with pytest.raises(QuotaExceeded) as caught:
        admission.check_request("lab", 10)

    assert caught.value.retry_after_s == pytest.approx(24.0)


def test_a_refused_request_took_nothing(admission: Admission) -> None:  # invariant 2
    admission.set_limits("lab", Limits(requests_per_minute=1))
    admission.set_limits("lab/ann", Limits(tokens_per_minute=60))
    admission.take_request("lab/bob", 1)

    for _ in range(5):
        with pytest.raises(QuotaExceeded):
            admission.check_request("lab/ann", 60)
    admission.set_limits("lab", Limits())

    admission.check_request("lab/ann", 60)


def test_setting_the_same_rate_again_gives_nothing_back(admission: Admission) -> None:
    admission.set_limits("lab", Limits(requests_per_minute=1))
    admission.take_request("lab", 1)

    admission.set_limits("lab", Limits(requests_per_minute=1, max_contexts=3))

    with pytest.raises(QuotaExceeded):
        admission.check_request("lab", 1)


def test_a_removed_tenant_has_no_limits(admission: Admission) -> None:
    admission.set_limits("lab", Limits(max_contexts=1))
    admission.contexts.add("lab")

    admission.remove("lab")
    admission.remove("lab")

    admission.check_context("lab")
