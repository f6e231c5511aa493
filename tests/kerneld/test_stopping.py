"""Stop strings, against an oracle that looks at the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kerneld.stopping import StopMatcher

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
PIECES = st.lists(st.text("abc", max_size=4), max_size=12)


def oracle(text: str, stops: list[str]) -> int | None:
    """Where the text is cut: the stop that ends first; of several that end there, the longest."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts)
    return None


def held_by_oracle(text: str, stops: list[str]) -> int:
    """How many last characters may be the beginning of a stop."""
    return max((n for stop in stops for n in range(len(stop)) if n <= len(text) and text.endswith(stop[:n])), default=0)


@given(STOPS, PIECES)
def test_the_cut_is_where_the_whole_text_has_it(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    text = ""
    for piece in pieces:
        text += piece
        expected = oracle(text, stops)
        assert matcher.push(piece) == (expected is not None)
        assert matcher.stop_at == expected
        assert matcher.num_settled == (len(text) - held_by_oracle(text, stops) if expected is None else expected)
        if expected is not None:
            return


def test_a_stop_may_cross_pieces() -> None:
    matcher = StopMatcher(["\nUser:"])

    hits = [matcher.push(piece) for piece in ("hello\n", "Us", "er", ":", "x")[:4]]

    assert (hits, matcher.stop_at) == ([False, False, False, True], 5)


def test_text_that_only_began_like_a_stop_is_settled_again() -> None:
    matcher = StopMatcher(["abc"])

    settled = []
    for piece in ("xa", "b", "d"):
        matcher.push(piece)
        settled.append(matcher.num_settled)

    assert settled == [1, 1, 4]


def test_without_stops_everything_is_settled() -> None:
    matcher = StopMatcher([])

    matcher.push("anything")

    assert (matcher.num_settled, matcher.is_stopped) == (8, False)
