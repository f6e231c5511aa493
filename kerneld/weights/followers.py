"""Followers: who watches how far loads are, and is woken when one has moved."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator

from kerneld.calls import LoadProgress, ModelState
from kerneld.models import Model
from kerneld.weights.presence import Presence

MEASURABLE_S = 0.02  # a rate over less would be of a few pieces, and of the clock


class Followers:
    """Everybody who follows a load."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        presence.on_news = self.wake
        self._progressed = asyncio.Event()
        self._copying_since: dict[str, float] = {}

    def tell(self, model: Model, stage: str, done: int = 0, total: int = 0, *, source: str = "") -> None:
        """A load is so far; `source` is where bytes come from."""
        now = time.monotonic()
        if stage != model.progress.stage or not done:
            self._copying_since[model.name] = now
        elapsed_s = now - self._copying_since.get(model.name, now)
        rate = done / elapsed_s if done and elapsed_s > MEASURABLE_S else 0.0
        model.progress = LoadProgress(stage, done, total, source, rate)
        self.wake()

    def wake(self) -> None:
        """Let everybody look again."""
        self._progressed.set()
        self._progressed = asyncio.Event()

    async def moved(self) -> None:
        """Wait until something moves."""
        await self._progressed.wait()

    async def follow(self, model: Model) -> AsyncGenerator[LoadProgress, None]:
        """Tell the progress of a model until it does not load any more. Raises: Unavailable, if there is no worker, and none comes."""
        shown: LoadProgress | None = None
        since = asyncio.get_running_loop().time()
        while model.state is ModelState.LOADING:
            progressed = self._progressed
            progress = model.progress if self._presence.is_there else LoadProgress(self._presence.absence().text, 0, 0)
            if progress != shown:
                shown = progress
                yield shown
            elif model.state is ModelState.LOADING:
                patience_s = self._presence.patience(since)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(progressed.wait(), patience_s)
        self._copying_since.pop(model.name, None)
