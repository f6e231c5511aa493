"""Stop strings: where the output ends, found across the borders of tokens.

The stop that is completed first ends the output; of several that are completed by the same character, the longest. Text before it is kept,
the stop itself is cut. Text that may be the beginning of a stop is held back until the next characters decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final


class _Pattern:
    """One stop string, and how much of it the text that came so far ends with (Knuth, Morris and Pratt)."""

    __slots__ = ("_borders", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text: Final = text
        self.matched = 0
        self._borders = [0] * len(text)  # [i]: the longest border of text[:i + 1]
        for i in range(1, len(text)):
            self._borders[i] = self._after(text[i], self._borders[i - 1])

    def _after(self, character: str, matched: int) -> int:
        while matched and self.text[matched] != character:
            matched = self._borders[matched - 1]
        return matched + 1 if self.text[matched] == character else 0

    def push(self, character: str) -> bool:
        """Take one more character; whether the stop is complete."""
        self.matched = self._after(character, self.matched)
        return self.matched == len(self.text)


class StopMatcher:
    """Looks for stop strings in text that comes in pieces."""

    __slots__ = ("_num_characters", "_patterns", "stop_at")

    def __init__(self, stops: Sequence[str]) -> None:
        """Stops are not empty."""
        self._patterns = [_Pattern(stop) for stop in dict.fromkeys(stops)]
        self._num_characters = 0
        self.stop_at: int | None = None  # index of the first character that is cut, once a stop was found

    def copy(self) -> StopMatcher:
        """Another one that has seen the same text."""
        twin = StopMatcher([pattern.text for pattern in self._patterns])
        for pattern, mine in zip(twin._patterns, self._patterns, strict=True):
            pattern.matched = mine.matched
        twin._num_characters, twin.stop_at = self._num_characters, self.stop_at
        return twin

    @property
    def has_stops(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._patterns)

    @property
    def is_stopped(self) -> bool:
        """Whether a stop was found; nothing is pushed afterwards."""
        return self.stop_at is not None

    @property
    def num_settled(self) -> int:
        """How many characters from the beginning are sure to be kept."""
        if self.stop_at is not None:
            return self.stop_at
        return self._num_characters - max((pattern.matched for pattern in self._patterns), default=0)

    def push(self, piece: str) -> bool:
        """Take more text; whether a stop is complete now."""
        assert self.stop_at is None, "nothing follows a stop"
        if not self._patterns:
            self._num_characters += len(piece)
            return False
        for character in piece:
            self._num_characters += 1
            completed = [pattern for pattern in self._patterns if pattern.push(character)]
            if completed:
                self.stop_at = self._num_characters - max(len(pattern.text) for pattern in completed)
                return True
        return False
