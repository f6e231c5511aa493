"""Which tokens a row has seen, and how often it has sampled each: what its penalties are about."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

FIRST_ROOM = 64  # tokens


class Tally:
    """Each token once, in the order in which they came, in an array that grows in place; nothing is made anew for a step."""

    __slots__ = ("_marks", "_places")

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._marks = np.zeros((0, 2), dtype=np.int32)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def marks(self) -> np.ndarray:
        """`[n, 2] int32`: tokens, and how often each is in the output. Good until more are noted."""
        return self._marks[: len(self._places)]

    def note(self, tokens: Iterable[int], outputs: Iterable[int] = ()) -> None:
        """Tokens that came, and tokens of the output, which came, too."""
        for token in tokens:
            self._place(token)
        for token in outputs:
            place = self._place(token)
            self._marks[place, 1] += 1

    def _place(self, token: int) -> int:
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            if place == len(self._marks):
                grown = np.zeros((max(FIRST_ROOM, 2 * place), 2), dtype=np.int32)
                grown[:place] = self._marks
                self._marks = grown
            self._marks[place, 0] = token
        return place
