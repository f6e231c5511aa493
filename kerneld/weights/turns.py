"""Turns: a model that does not fit waits here until others have left, or until there is no hope.

One at a time decides who leaves (`kerneld.weights.victims` says who), in the order of `kerneld.weights.line`; who is behind looks again
then. Whoever waits looks again when a model came or went, when a request ended, when another one waits for it, and when the time has come
that the choice named.

    held back ---> joins the line ---> is first ---> others leave ---> places its weights ---> settled

Invariants
1. From the moment that others have left for a model until it has placed its weights, or cannot, nobody else places any: room that was made
   for one is taken by no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from kerneld.models import Model, ModelTable
from kerneld.weights.heldloads import HeldLoads
from kerneld.weights.line import Line, Waiter
from kerneld.weights.parking import Parking
from kerneld.weights.placement import Placement
from kerneld.weights.victims import NEVER, Choice, Rules, Standing, Wanted, choose
from memory.config import MemoryConfig
from memory.errors import OutOfFrames

GUESSED_RATES = {"host": 8e9, "disk": 1e9}  # bytes per second, until a load has told
_BEHIND_S = 1.0  # who is not first looks again after so long, because urgencies change without a word


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
        self.line = Line(clock, memory.max_model_wait_s)
        self._decider: Waiter | None = None  # others leave for it just now
        self._placing = ""  # for whom room was made (invariant 1)
        self.held = HeldLoads(clock)
        self._changed = asyncio.Event()
        self.demand: Callable[[Model], int] = lambda _model: 0  # requests that run on a model or wait for it
        self.line.is_wanted = lambda model: self.demand(model) > 0
        self.is_idle: Callable[[], bool] = lambda: True  # nobody runs, and nobody waits who could

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
        waiter = self.line.join(model)
        self.look_again()  # another one may not be first any more
        try:
            while not ((is_next := self._is_next(waiter)) and await self._make_way(waiter, places, evict)):
                now = self._clock()
                # Where all that may leave is too little, others are on their way in or out, or rows of others have to end first.
                gives_up_at = NEVER if self.demand(model) else waiter.since + self._rules.max_wait_s
                if now >= gives_up_at or not self._could_ever(places):
                    raise shortage
                look_at = self._choose(waiter, places, now).until if is_next else now + _BEHIND_S
                await self._wait(min(look_at, gives_up_at) - now)
        finally:
            self.line.leave(waiter)
            if self._decider is waiter:
                self._decider = None
            self.look_again()

    async def _make_way(self, waiter: Waiter, places: tuple[int, ...], evict: Callable[[Model], Awaitable[None]]) -> bool:
        """Have others leave for the model whose turn it is. Returns whether it is worth another try."""
        model = waiter.model
        victims: tuple[str, ...] = ()
        if not self._placement.fits(places):
            victims = self._choose(waiter, places, self._clock()).victims
            if not victims:
                return False
        self._decider, self._placing = waiter, model.name
        for victim in [self._models.get(name) for name in victims]:  # its name may be removed while others leave
            await evict(victim)
        return True

    def _choose(self, waiter: Waiter, places: tuple[int, ...], now: float) -> Choice:
        wanted = Wanted(waiter.since, self.demand(waiter.model))
        return choose(wanted, self._standings(waiter.model), now, self._rules, self._fits(places))

    def _is_next(self, waiter: Waiter) -> bool:
        """Whether it is the turn of a model that waits."""
        return self._decider is None and not self._is_kept_from(waiter.model) and self.line.first() is waiter

    def _is_kept_from(self, model: Model) -> bool:
        """Whether room is being made for somebody else (invariant 1)."""
        return self._placing not in ("", model.name)

    def may_place(self, model: Model) -> bool:
        """Whether a model may take room that there is: it was not made for somebody else (invariant 1)."""
        return not self._is_kept_from(model)

    async def changed(self) -> None:
        """Wait until something changes."""
        await self._changed.wait()

    def placed(self, model: Model) -> None:
        """A model has its room, or does not try for it now: the next one may."""
        if self._placing == model.name:
            self._placing = ""
            self.look_again()

    def settled(self, model: Model) -> None:
        """A load ended, however."""
        self.placed(model)
        self.line.forget(model)
        self.held.release(model.name)

    async def held_back(self, model: Model) -> None:
        """Wait while a soft limit holds the load of a model back and somebody else needs the device."""
        while (seconds := self.held.seconds_left(model.name)) and not self.is_idle():
            await self._wait(seconds)
        self.held.release(model.name)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), None if seconds == NEVER else seconds)

    def _standings(self, wanting: Model) -> list[Standing]:
        resident = (model for model in self._models if model.is_resident and model.name not in (wanting.name, wanting.base))
        return [self._standing(model) for model in resident]

    def _standing(self, model: Model) -> Standing:
        model.resident_since = min(model.resident_since, self._clock())  # a clock that goes back keeps nobody on the device
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
