"""What a row has seen, kept as arrays."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from drivers.tally import FIRST_ROOM, Tally


@given(st.lists(st.tuples(st.lists(st.integers(0, 300), max_size=80), st.integers(0, 80)), max_size=6))
def test_each_token_stands_once_with_its_count_in_the_output(chunks: list[tuple[list[int], int]]) -> None:
    tally, seen, outputs = Tally(), dict[int, None](), Counter[int]()

    for tokens, first_output in chunks:
        tally.note(tokens, tokens[first_output:])
        seen |= dict.fromkeys(tokens)
        outputs.update(tokens[first_output:])

    assert tally.marks.tolist() == [[token, outputs[token]] for token in seen]
    assert len(tally) == len(seen)


def test_more_tokens_than_there_was_room_for_keep_their_counts() -> None:
    tally = Tally()
    tally.note([], [7] * 3)

    tally.note(range(100, 100 + 3 * FIRST_ROOM))

    assert tally.marks[0].tolist() == [7, 3]
    assert tally.marks[-1].tolist() == [99 + 3 * FIRST_ROOM, 0]
