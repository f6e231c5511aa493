"""How many tokens to guess: as many as were right lately, and none for a while where they were all wrong.

A guess that is wrong costs a row of the step, and the pass of a model that made it. So after a step whose guesses were all right twice as
many are made, after one of which some were right as many as those, and after one of which none was right, the row goes on without for 1
step, then for 2, 4, ... up to `LONGEST_PAUSE`: guessing in vain costs a row one step in that many, in the end.
"""

from __future__ import annotations

from typing import Final

FIRST_REACH: Final = 4
LONGEST_PAUSE: Final = 32


class Pace:
    """The pace of one row."""

    __slots__ = ("_next_pause", "_pause", "_reach")

    def __init__(self) -> None:
        self._reach = FIRST_REACH
        self._pause = 0  # steps to go without
        self._next_pause = 1

    def next(self, most: int) -> int:
        """How many tokens to guess in the next step, at most so many."""
        if self._pause:
            self._pause -= 1
            return 0
        return min(most, self._reach)

    def heard(self, num_guessed: int, num_right: int) -> None:
        """What became of the guesses of a step."""
        if num_right:
            self._reach = 2 * num_guessed if num_right == num_guessed else num_right
            self._next_pause = 1
        elif num_guessed:
            self._reach, self._pause = 1, self._next_pause
            self._next_pause = min(2 * self._next_pause, LONGEST_PAUSE)
