"""How much of what they ask for requests generate."""

from __future__ import annotations

import pytest

from kerneld.pricing.usedparts import UsedParts


def test_where_nothing_is_known_all_that_is_asked_for_is_expected() -> None:
    assert UsedParts().of("ann") == 1.0


def test_a_stranger_is_taken_to_be_like_everybody() -> None:
    parts = UsedParts()
    parts.ended("bob", 10, 40)

    assert parts.of("ann") == 0.25


def test_few_requests_of_a_tenant_are_drawn_towards_everybodys() -> None:
    parts = UsedParts()
    for _ in range(63):
        parts.ended("bob", 10, 100)
    parts.ended("ann", 100, 100)

    assert parts.of("bob") < 0.12
    assert parts.of("bob") < parts.of("ann") < 0.3


def test_many_requests_of_a_tenant_speak_for_it() -> None:
    parts = UsedParts()
    for _ in range(200):
        parts.ended("bob", 10, 100)
        parts.ended("ann", 90, 100)

    assert parts.of("bob") == pytest.approx(0.15, abs=0.01)
    assert parts.of("ann") == pytest.approx(0.85, abs=0.01)


def test_what_was_long_ago_is_forgotten() -> None:
    parts = UsedParts()
    for _ in range(1000):
        parts.ended("ann", 100, 100)
    for _ in range(300):
        parts.ended("ann", 0, 100)

    assert parts.of("ann") < 0.01


def test_a_tenant_that_is_gone_is_a_stranger() -> None:
    parts = UsedParts()
    parts.ended("ann", 100, 100)
    parts.ended("bob", 0, 100)
    parts.forget("ann")

    assert parts.of("ann") == 0.5
