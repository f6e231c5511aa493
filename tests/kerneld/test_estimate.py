"""When a request starts: the fluid model, the measured rate, and what it learns of its own error."""

from __future__ import annotations

import pytest

from kerneld.estimate import LEAST_WAIT_S, Estimator, Level, Rival, work_ahead


def rival(counter_us: float = 0.0, weight: float = 1.0, backlog_us: int = 1_000_000) -> Rival:
    return Rival(counter_us, weight, backlog_us)


def measured(rate: float = 1_000_000.0) -> Estimator:
    estimator = Estimator()
    estimator.note_rate(int(rate), 1.0)
    return estimator


def test_nothing_is_known_before_something_was_charged() -> None:
    estimator = Estimator()
    assert estimator.seconds(1000, ()) is None
    estimator.note_rate(0, 1.0)
    assert estimator.seconds(1000, ()) is None
    assert (estimator.error, estimator.num_judged) == (None, 0)


def test_alone_one_waits_for_ones_own_work_only() -> None:
    assert work_ahead(700, [Level(rival(), ())]) == 700
    assert measured().seconds(700_000, ()) == pytest.approx(0.7)


def test_an_equal_sibling_is_served_as_much_meanwhile() -> None:
    assert work_ahead(700, [Level(rival(), (rival(),))]) == 1400


def test_weights_say_how_much_of_the_device_each_has() -> None:
    assert work_ahead(600, [Level(rival(weight=2), (rival(weight=1),))]) == 900


def test_a_sibling_with_little_work_leaves_the_rest() -> None:
    assert work_ahead(700, [Level(rival(), (rival(backlog_us=100),))]) == 800


def test_a_sibling_that_is_ahead_waits_and_one_that_is_behind_goes_first() -> None:
    assert work_ahead(700, [Level(rival(), (rival(counter_us=500),))]) == 900
    assert work_ahead(700, [Level(rival(counter_us=500), (rival(),))]) == 1900
    assert work_ahead(0, [Level(rival(), (rival(counter_us=500),))]) == 0


def test_every_level_adds_what_its_siblings_are_owed() -> None:
    person = Level(rival(), (rival(),))  # 100 + 100
    group = Level(rival(weight=1), (rival(weight=3),))  # 200 + 600
    assert work_ahead(100, [person, group]) == 800


def test_who_has_nothing_ahead_waits_half_an_admission() -> None:
    estimator = measured()
    estimator.note_admission(400_000)
    assert estimator.seconds(0, ()) == pytest.approx(0.2)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    estimator = Estimator()
    for _ in range(30):
        estimator.note_rate(1_000_000, 1.0)
    for _ in range(60):
        estimator.note_rate(500_000, 1.0)
    assert estimator.rate == pytest.approx(500_000, rel=0.01)


def test_a_rate_is_never_negative() -> None:
    estimator = measured(1000)
    estimator.note_rate(-5000, 1.0)
    assert estimator.rate is None


def test_a_rate_that_is_forgotten_is_measured_anew() -> None:
    estimator = measured()
    estimator.note_admission(400_000)
    estimator.forget_rate()
    assert estimator.seconds(1000, ()) is None
    estimator.note_rate(500_000, 1.0)
    assert estimator.seconds(0, ()) == 0.0
    assert estimator.rate == 500_000


def test_the_error_is_the_median_of_the_last_starts() -> None:
    estimator = measured()
    for expected_s, waited_s in ((1.0, 2.0), (3.0, 2.0), (2.2, 2.0)):
        estimator.note_start(expected_s, waited_s)
    assert estimator.error == pytest.approx(0.5)
    assert estimator.estimate(1.5).num_judged == 3
    for _ in range(64):
        estimator.note_start(2.2, 2.0)
    assert estimator.error == pytest.approx(0.1)
    assert estimator.num_judged == 64


def test_a_wait_for_the_next_step_is_no_error() -> None:
    estimator = measured()
    estimator.note_start(0.0, LEAST_WAIT_S / 2)
    assert estimator.error == 0.0
