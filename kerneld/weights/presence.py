"""Presence: whether the worker of a device is there, and how long anybody waits for it.

Loads wait as long as it takes, because requests that were accepted wait behind them. Who only watches is told at once what keeps the worker
away, and waits `WAIT_S`, or not at all where there is no hope (`kerneld.problems`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from kerneld.errors import Unavailable

WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Absence:
    """Why a worker is not there."""

    device: str = "the device"
    problem: str = "It is being started."
    is_final: bool = False  # the next one will not come either

    @property
    def text(self) -> str:
        """What is told to who waits."""
        return f"waiting for the worker of {self.device}: {self.problem}"

    @property
    def verdict(self) -> str:
        """What is told to who waited in vain."""
        end = "Mend that; it is tried again by itself, every 30 s at most." if self.is_final else "It is being started again."
        return f"The worker of {self.device} is not there. {self.problem} {end}"


class Presence:
    """The worker of one device."""

    def __init__(self) -> None:
        self.is_there = False
        self.absence: Callable[[], Absence] = Absence
        self.on_news: Callable[[], None] = lambda: None
        self._away_since = float("-inf")
        self._moved = asyncio.Event()

    def came(self) -> None:
        """It may be used now."""
        self.is_there = True
        self.news()

    def went(self) -> None:
        """It is gone."""
        if self.is_there:
            self._away_since = asyncio.get_running_loop().time()
        self.is_there = False
        self.news()

    def news(self) -> None:
        """Something may be said that was not known before."""
        self._moved.set()
        self._moved = asyncio.Event()
        self.on_news()

    async def moved(self) -> None:
        """Wait for news."""
        await self._moved.wait()

    def check(self) -> None:
        """Whether it is there, or may come. Raises: Unavailable."""
        if not self.is_there and (absence := self.absence()).is_final:
            raise Unavailable(absence.verdict, retry_after_s=WAIT_S)

    def patience(self, since: float) -> float | None:
        """For how many seconds more who has waited since then waits; None: as long as it takes, for it is there. Raises: Unavailable."""
        if self.is_there:
            return None
        self.check()
        left_s = max(since, self._away_since) + WAIT_S - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise Unavailable(self.absence().verdict, retry_after_s=1.0)
        return left_s


async def await_any(presences: Sequence[Presence]) -> AsyncGenerator[str, None]:
    """What keeps workers away, again when that changes, until one of them is there. Raises: Unavailable, if none comes."""
    since, shown = asyncio.get_running_loop().time(), ""
    while not any(presence.is_there for presence in presences):
        news = [asyncio.ensure_future(presence.moved()) for presence in presences]
        try:
            patience = _longest(presences, since)
            text = "; ".join(presence.absence().text for presence in presences)
            if text != shown:
                shown = text
                yield text
            else:
                await asyncio.wait(news, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in news:
                each.cancel()


def _longest(presences: Sequence[Presence], since: float) -> float:
    """How long to wait for whoever may still come. Raises: Unavailable, what the first one says, if nobody may."""
    found: list[float] = []
    failures: list[Unavailable] = []
    for presence in presences:
        try:
            found.append(presence.patience(since) or 0.0)
        except Unavailable as failure:
            failures.append(failure)
    if not found:
        raise failures[0]
    return max(found)
