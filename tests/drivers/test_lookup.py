"""What came after the same tokens before is guessed to come again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drivers.lookup import MOST_TOKENS, Lookup


def test_what_followed_before_is_guessed() -> None:
    assert Lookup().guess([1, 2, 3, 4, 5, 9, 1, 2, 3], 2) == [4, 5]


def test_nothing_is_guessed_where_nothing_repeats() -> None:
    assert Lookup().guess([1, 2, 3, 4, 5], 4) == []


def test_one_token_that_repeats_is_not_enough() -> None:
    assert Lookup().guess([1, 2, 3, 1], 4) == []


def test_the_longest_run_decides() -> None:
    assert Lookup().guess([7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2], 1) == [5]


def test_of_equal_runs_the_latest_decides() -> None:
    assert Lookup().guess([1, 2, 5, 1, 2, 6, 9, 1, 2], 1) == [6]


def test_what_repeats_up_to_the_end_goes_on_repeating() -> None:
    assert Lookup().guess([4, 4, 4, 4], 3) == [4, 4, 4]
    assert Lookup().guess([1, 2, 3, 1, 2, 3, 1, 2], 5) == [3, 1, 2, 3, 1]


def test_the_past_grows_between_guesses() -> None:
    lookup, past = Lookup(), [1, 2, 3]
    first = lookup.guess(past, 4)
    past += [1, 2]

    assert (first, lookup.guess(past, 4)) == ([], [3, 1, 2, 3])


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6), st.lists(st.integers(1, 40), max_size=3))
def test_a_guess_is_what_followed_the_longest_run_that_stood_there_before(past: list[int], most: int, cuts: list[int]) -> None:
    lookup = Lookup()
    for cut in sorted(cuts):
        lookup.guess(past[:cut], most)

    guess = lookup.guess(past, most)

    places = [
        end
        for size in range(min(MOST_TOKENS, len(past)), 1, -1)
        for end in range(len(past) - 1, size - 1, -1)
        if past[end - size : end] == past[-size:]
    ]
    assert guess == ([past[places[0] + idx % (len(past) - places[0])] for idx in range(most)] if places else [])
