"""Effects: what calls with a request id did, so that the same call again gets the same answer and does nothing (kept for 24 hours).

An effect is journaled in the same write as what the call did, so there is no moment at which one is there without the other. Its answer is
the handle that the call made (an id, or nothing), from which the verb builds its full answer anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from kerneld.calls import Caller
from kerneld.errors import Conflict
from kerneld.state.records import Effect
from kerneld.state.replay import EFFECT_LIFETIME_S


class Effects:
    """The remembered calls of all principals."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._effects: dict[tuple[str, str], Effect] = {}  # in the order of their time
        self._under_way: set[tuple[str, str]] = set()

    def restore(self, effects: Iterable[Effect]) -> None:
        """Take over what the journal and the database remember."""
        ordered = sorted(effects, key=lambda effect: effect.at)
        self._effects = {(effect.principal, effect.request_id): effect for effect in ordered}

    def find(self, caller: Caller, verb: str) -> bytes | None:
        """The answer of the same call made before; None if there was none.

        Raises: Conflict, if the request id was used for another call, or the same call is under way.
        """
        self._forget_old()
        key = (caller.principal.name, caller.request_id)
        if not caller.request_id:
            return None
        if key in self._under_way:
            raise Conflict(
                f"The call with request id {caller.request_id!r} is still under way.", reason="CALL_UNDER_WAY", retry_after_s=0.2
            )
        effect = self._effects.get(key)
        if effect is None:
            return None
        if effect.verb != verb or effect.digest != caller.digest:
            raise Conflict(f"The request id {caller.request_id!r} was used for another call; use a new one.", reason="REQUEST_ID_REUSED")
        return effect.answer

    @contextmanager
    def under_way(self, caller: Caller) -> Iterator[None]:
        """Refuse the same call again while this one waits for disk or device."""
        key = (caller.principal.name, caller.request_id)
        if not caller.request_id:
            yield
            return
        self._under_way.add(key)
        try:
            yield
        finally:
            self._under_way.discard(key)

    def record(self, caller: Caller, verb: str, answer: bytes = b"") -> list[Effect]:
        """What has to be made durable together with what the call did; `keep` it once that has happened."""
        if not caller.request_id:
            return []
        return [Effect(caller.principal.name, caller.request_id, verb, caller.digest, answer, self._clock())]

    def keep(self, records: Iterable[object]) -> None:
        """Remember the effects among records that are durable now."""
        for record in records:
            if isinstance(record, Effect):
                self._effects[record.principal, record.request_id] = record

    @contextmanager
    def done_by(self, caller: Caller, verb: str, answer: bytes = b"") -> Iterator[list[Effect]]:
        """A call that waits for the disk: gives what has to be made durable with what it does, and keeps it if that went well."""
        with self.under_way(caller):
            effects = self.record(caller, verb, answer)
            yield effects
            self.keep(effects)

    def _forget_old(self) -> None:
        horizon = self._clock() - EFFECT_LIFETIME_S
        while self._effects:
            key, effect = next(iter(self._effects.items()))
            if effect.at >= horizon:
                return
            del self._effects[key]
