"""Turns: a model that does not fit waits here until others have left, or until there is no hope.

One at a time decides who leaves (`kerneld.weights.victims` says who), in the order in which they came; who is behind looks again then.
Whoever waits looks again when a model came or went, when a request ended, and when the time has come that the choice named.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from kerneld.models import Model, ModelTable
from kerneld.weights.parking import Parking
from kerneld.weights.placement import Placement
from kerneld.weights.victims import NEVER, Rules, Standing, Wanted, choose
from memory.config import MemoryConfig
from memory.errors import OutOfFrames

GUESSED_RATES = {"host": 8e9, "disk": 1e9}  # bytes per second, until a load has told


class Turns:
    """Who leaves for whom."""

    def __init__(
        self, memory: MemoryConfig, models: ModelTable, placement: Placement, parking: Parking, clock: Callable[[], float]
    ) -> None:
        self._models = models
        self._placement = placement
        self._parking = parking
        self._clock = clock
        self._rules = Rules(memory.min_residency_s, memory.max_model_wait_s)
        self._rates = dict(GUESSED_RATES)
        self._line = asyncio.Lock()
        self._changed = asyncio.Event()
        self.demand: Callable[[Model], int] = lambda _model: 0  # requests that run on a model or wait for it

    def look_again(self) -> None:
        """Something changed that may let a model go."""
        self._changed.set()
        self._changed = asyncio.Event()

    def note_used(self, names: Iterable[str]) -> None:
        """A request on these models has ended."""
        for name in names:
            if name in self._models:
                self._models.get(name).last_used_at = self._clock()
        self.look_again()

    def note_rate(self, source: str, size_bytes: int, seconds: float) -> None:
        """So much was read from "host" or "disk"."""
        if size_bytes and seconds > 0:
            self._rates[source] = size_bytes / seconds

    async def make_way(
        self, model: Model, places: tuple[int, ...], shortage: OutOfFrames, evict: Callable[[Model], Awaitable[None]]
    ) -> None:
        """Have others leave, or wait until they may, so that weights of these sizes are worth another try.

        Raises: the shortage, if nobody can leave for it, or nobody could for `max_model_wait_s` and no request waits.
        """
        since = self._clock()
        async with self._line:
            while not self._placement.fits(places):
                now, demand = self._clock(), self.demand(model)
                choice = choose(Wanted(since, demand), self._standings(model), now, self._rules, self._fits(places))
                for victim in [self._models.get(name) for name in choice.victims]:  # its name may be removed while others leave
                    await evict(victim)
                if choice.victims:
                    return
                # Where all that may leave is too little, others are on their way in or out, or rows of others have to end first.
                gives_up_at = NEVER if demand else since + self._rules.max_wait_s
                if now >= gives_up_at or not self._could_ever(places):
                    raise shortage
                await self._wait(min(choice.until, gives_up_at) - now)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), None if seconds == NEVER else seconds)

    def _standings(self, wanting: Model) -> list[Standing]:
        resident = (model for model in self._models if model.is_resident and model.name not in (wanting.name, wanting.base))
        return [self._standing(model) for model in resident]

    def _standing(self, model: Model) -> Standing:
        source = "host" if self._parking.can_hold(model) else "disk"
        return Standing(
            name=model.name,
            size_bytes=model.size_bytes,
            reload_s=model.size_bytes / self._rates[source],
            resident_since=model.resident_since,
            last_used_at=model.last_used_at,
            num_requests=self.demand(model),
            is_pinned=model.name in self._models.pinned(),
        )

    def _fits(self, places: tuple[int, ...]) -> Callable[[tuple[str, ...]], bool]:
        def fits(names: tuple[str, ...]) -> bool:
            if self._placement.fits(places, names):
                return True
            # Rows that run hold their pages where they are; those of a victim give them up with it.
            in_use = any(self.demand(self._models.get(name)) for name in names)
            return in_use and self._placement.is_within_share(places, names)

        return fits

    def _could_ever(self, places: tuple[int, ...]) -> bool:
        """Whether there would be room beside the pinned models alone."""
        return self._placement.is_within_share(places, [model.name for model in self._models if model.name not in self._models.pinned()])
