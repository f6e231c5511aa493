"""Jain's index and recent service over a sliding window, on a clock of the test's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from kerneld.servicewindow import WINDOW_S, ServiceWindow, jain_index


@dataclass(frozen=True)
class Account:
    path: str
    service_us: int
    weight: int = 1
    factor_milli: int = 1000
    is_active: bool = True


def run(window: ServiceWindow, seconds: int, *rates: Account) -> None:
    """Serve each path `service_us` a second."""
    for second in range(seconds + 1):
        window.note(second, [replace(each, service_us=each.service_us * second) for each in rates])


@pytest.mark.parametrize(
    ("parts", "index"), [((1, 1, 1), 1.0), ((3, 0, 0), 1 / 3), ((0, 0), 1.0), ((), 1.0), ((-5, 1), 0.5), ((1, 2), 9 / 10)]
)
def test_the_index_is_one_when_all_have_the_same(parts: tuple[float, ...], index: float) -> None:
    assert jain_index(parts) == pytest.approx(index)


def test_service_counts_by_effective_weight() -> None:
    window = ServiceWindow()
    run(window, 30, Account("a", 1000, weight=1), Account("b", 3000, weight=2, factor_milli=1500))
    assert window.jain() == pytest.approx(1.0)
    run(even := ServiceWindow(), 30, Account("a", 1000, weight=1), Account("b", 1000, weight=3))
    assert even.jain() == pytest.approx(0.8)


def test_who_does_not_compete_all_the_time_does_not_count() -> None:
    window = ServiceWindow()
    for second in range(31):
        window.note(second, [Account("a", 1000 * second), Account("b", 0, is_active=second != 17), Account("c", 0, is_active=False)])
    assert window.jain() == 1.0


def test_of_several_groups_of_siblings_the_worst_counts() -> None:
    window = ServiceWindow()
    run(window, 30, Account("a", 500), Account("b", 500), Account("a/x", 500), Account("a/y", 0), Account("b/z", 500))
    assert window.indices() == {"": pytest.approx(1.0), "a": pytest.approx(0.5)}
    assert window.jain() == pytest.approx(0.5)


def test_what_was_long_ago_is_forgotten() -> None:
    window = ServiceWindow()
    run(window, 30, Account("a", 1000), Account("b", 0))
    assert window.jain() == pytest.approx(0.5)
    for second in range(31, 31 + int(WINDOW_S) + 10):
        window.note(second, [Account("a", 30_000 + second), Account("b", second)])
    assert window.jain() == pytest.approx(1.0)


def test_without_a_history_nobody_competes() -> None:
    window = ServiceWindow()
    assert (window.jain(), window.recent_us()) == (1.0, ({}, 0.0))
    window.note(0, [Account("a", 5), Account("b", 0)])
    assert (window.jain(), window.recent_us()) == (1.0, ({}, 0.0))


def test_recent_service_is_that_of_the_last_seconds() -> None:
    window = ServiceWindow()
    run(window, 40, Account("a", 1000), Account("b", 10))
    recent, seconds = window.recent_us()
    assert 10 <= seconds < 15
    assert recent == {"a": 1000 * seconds, "b": 10 * seconds}


def test_a_tenant_that_goes_or_comes_is_no_trouble() -> None:
    window = ServiceWindow()
    run(window, 12, Account("a", 1000), Account("b", 1000))
    window.note(13, [Account("a", 13_000), Account("new", 0)])
    assert window.jain() == 1.0
    assert set(window.recent_us()[0]) == {"a", "new"}
