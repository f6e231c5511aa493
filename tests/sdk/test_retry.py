"""When a call is tried again."""

from __future__ import annotations

from itertools import pairwise

import grpc
import pytest

from kerneld_client.errors import Draining, Internal, KerneldError, NotFound, Unauthenticated, Unavailable, WrongState
from kerneld_client.retry import LONGEST_WAIT_S, Retry


class Clock:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_passes_is_waited_for_longer_each_time_up_to_a_limit() -> None:
    retry = Retry(60, can_log_in=False, clock=Clock())
    waits = [retry.wait_s(Unavailable("x", reason="UNAVAILABLE")) for _ in range(12)]
    assert waits[0] < 0.03
    assert all(later > 0.7 * earlier for earlier, later in pairwise(waits))
    assert max(waits) <= LONGEST_WAIT_S


def test_the_daemons_word_on_when_to_retry_is_kept() -> None:
    wait_s = Retry(60, can_log_in=False, clock=Clock()).wait_s(Unavailable("x", reason="UNAVAILABLE", retry_after_s=4))
    assert 3 <= wait_s <= 4


def test_a_wait_that_would_outlast_the_time_raises_the_error() -> None:
    clock = Clock()
    retry = Retry(1, can_log_in=False, clock=clock)
    clock.now += 0.99
    with pytest.raises(Unavailable):
        retry.wait_s(Unavailable("x"))
    assert retry.remaining_s() == pytest.approx(0.01)


def test_a_sign_of_life_begins_the_time_anew() -> None:
    clock = Clock()
    retry = Retry(1, can_log_in=False, clock=clock)
    clock.now += 5
    retry.renew()
    assert retry.wait_s(Unavailable("x")) > 0


def test_an_unknown_login_is_renewed_once_and_then_final() -> None:
    retry = Retry(60, can_log_in=True, clock=Clock())
    assert retry.wait_s(Unauthenticated("x")) == 0
    with pytest.raises(Unauthenticated):
        retry.wait_s(Unauthenticated("x"))


def test_without_a_login_to_renew_it_is_final_at_once() -> None:
    with pytest.raises(Unauthenticated):
        Retry(60, can_log_in=False, clock=Clock()).wait_s(Unauthenticated("x"))


def test_a_daemon_that_was_away_may_want_a_new_login_again() -> None:
    retry = Retry(60, can_log_in=True, clock=Clock())
    retry.wait_s(Unauthenticated("x"))
    retry.wait_s(Unavailable("x"))
    assert retry.wait_s(Unauthenticated("x")) == 0


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED])
def test_what_the_transport_made_passes_and_what_the_daemon_said_does_not(code: grpc.StatusCode) -> None:
    retry = Retry(60, can_log_in=False, clock=Clock())
    assert retry.wait_s(KerneldError("Socket closed", code=code)) > 0
    with pytest.raises(KerneldError):
        retry.wait_s(KerneldError("said", code=code, reason="SAID"))


@pytest.mark.parametrize("error", [NotFound("x"), WrongState("x"), Internal("x", reason="INTERNAL")])
def test_answers_are_final(error: KerneldError) -> None:
    with pytest.raises(type(error)):
        Retry(60, can_log_in=True, clock=Clock()).wait_s(error)


def test_only_a_stream_that_began_outlasts_a_drain() -> None:
    retry = Retry(60, can_log_in=True, clock=Clock())
    with pytest.raises(Draining):
        retry.wait_s(Draining("x", reason="DRAINING"))
    retry.outlasts_drain = True
    assert retry.wait_s(Draining("x", reason="DRAINING")) > 0
