"""Picture: something large that is drawn when somebody looks at it, and looked at again if drawing it takes long.

Whoever asks again and again so takes a tenth of the event loop at most, and what is quickly drawn is always as it is now.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

Drawn = TypeVar("Drawn")

# What takes less is drawn anew whenever somebody looks.
QUICK_S: Final = 0.005
# What takes longer serves for so many times the time that it took.
SERVES: Final = 10.0


class Picture(Generic[Drawn]):
    """The last drawing, and until when it serves."""

    def __init__(self, draw: Callable[[], Drawn], clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` never goes back."""
        self._draw = draw
        self._clock = clock
        self._drawn: Drawn | None = None
        self._until = float("-inf")

    def look(self) -> Drawn:
        """The picture, as it is now or was a little while ago."""
        began = self._clock()
        if self._drawn is None or began >= self._until:
            self._drawn = self._draw()
            took_s = self._clock() - began
            self._until = began + SERVES * took_s if took_s >= QUICK_S else began
        return self._drawn
