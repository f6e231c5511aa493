"""Who guesses well guesses more, who guesses badly hardly at all."""

from __future__ import annotations

from itertools import pairwise

import pytest

from drivers.pace import LONGEST_PAUSE, Pace


@pytest.mark.parametrize(("heard", "reach"), [((4, 4), 8), ((4, 3), 3), ((4, 1), 1), ((0, 0), 4)])
def test_it_follows_how_many_were_right(heard: tuple[int, int], reach: int) -> None:
    pace = Pace()

    pace.heard(*heard)

    assert (pace.next(16), pace.next(2)) == (reach, min(reach, 2))


def test_it_pauses_longer_and_longer_where_none_is_right() -> None:
    pace = Pace()
    tries = []
    for step in range(200):
        num_guessed = pace.next(4)
        if num_guessed:
            tries.append(step)
        pace.heard(num_guessed, 0)

    assert tries[:5] == [0, 2, 5, 10, 19]
    assert {late - early for early, late in pairwise(tries[6:])} == {LONGEST_PAUSE + 1}


def test_one_that_is_right_ends_the_pauses() -> None:
    pace = Pace()
    for _ in range(3):
        pace.heard(1, 0)
    pace.heard(1, 1)
    pace.heard(2, 0)

    assert [pace.next(4) for _ in range(5)] == [0, 1, 1, 1, 1]
