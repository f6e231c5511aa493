"""How values are written for people."""

from __future__ import annotations

import pytest

from cli.render import Format, Printer, bar_text, bytes_text, count_text, duration_text, plain, shown
from kerneld_client.values import Access, Grant


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0"), (512, "512"), (1536, "1.5KiB"), (64 << 20, "64MiB"), (3 << 39, "1.5TiB"), (1 << 60, "1048576TiB")],
)
def test_sizes_have_binary_suffixes(size_bytes: int, text: str) -> None:
    assert bytes_text(size_bytes) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (950, "950"), (12_345, "12.3k"), (7_000_000, "7M")])
def test_counts_have_decimal_suffixes(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0.4, "0s"), (12, "12s"), (185, "3m5s"), (3600, "1h"), (7805, "2h10m"), (86400 + 59, "1d"), (90_000, "1d1h")],
)
def test_durations_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_ages_are_counted_from_the_clock() -> None:
    printer = Printer(Format.TABLE, clock=lambda: 1000.0)

    assert (printer.age(940.0), printer.age(0.0), printer.left(1030.0)) == ("1m", "", "30s")


def test_a_bar_is_as_wide_as_asked_whatever_the_parts_round_to() -> None:
    assert bar_text([("#", 1), ("=", 1), ("+", 1)], 3, 10) == "###===+++·"
    assert bar_text([("#", 99), ("=", 99)], 100, 10) == "##########"
    assert bar_text([], 0, 4) == "····"


def test_the_smallest_part_of_a_bar_is_drawn() -> None:
    assert bar_text([("#", 1), ("=", 0)], 1000, 4) == "#···"


def test_control_characters_are_shown() -> None:
    assert shown("a\tb\x1b[31m\u009b\n") == "a\tb\\x1b[31m\\x9b\n"


def test_plain_values_have_no_classes_left() -> None:
    granted = Grant("tenant:lab", frozenset({Access.WRITE, Access.READ}), 0.0)

    assert plain({"grants": (granted,)}) == {"grants": [{"grantee": "tenant:lab", "access": ["read", "write"], "expires_at": 0.0}]}
