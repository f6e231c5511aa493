"""Guessing without a model: what comes next is what came after the same tokens before (prompt lookup).

    ... def f ( x ) : return x ... def f ( x ) :        the last three tokens stood there before
                     ^^^^^^^^^                          so these are the guesses

Answers that repeat their input (edits, summaries, code, extraction) are guessed well, at the cost of a few dictionary look-ups. Where what
came before reaches up to the end, it is taken to go on repeating.

Source: Saxena, "Prompt lookup decoding" (2023), with up to `MOST_TOKENS` tokens looked up, the longest first, and the latest place of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Final

MOST_TOKENS: Final = 4
FEWEST_TOKENS: Final = 2  # one token alone has followed by too many others


class Lookup:
    """The places of one row's tokens."""

    __slots__ = ("_ends", "_num_known")

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # where the latest such run of tokens ends, exclusive
        self._num_known = 0  # tokens whose runs are known: those that end before the last token

    def guess(self, past: Sequence[int], most: int) -> list[int]:
        """So many tokens that may follow `past`, which only ever grows. Nothing, if its end never stood there before."""
        for end in range(max(self._num_known, FEWEST_TOKENS), len(past)):
            for size in range(FEWEST_TOKENS, min(MOST_TOKENS, end) + 1):
                self._ends[tuple(past[end - size : end])] = end
        self._num_known = max(self._num_known, len(past))
        for size in range(min(MOST_TOKENS, len(past)), FEWEST_TOKENS - 1, -1):
            found = self._ends.get(tuple(past[-size:]))
            if found is not None:
                return list(islice(cycle(past[found:]), most))
        return []
