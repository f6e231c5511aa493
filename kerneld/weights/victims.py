"""Victims: which models leave the device so that another can come. A pure choice over what is known of each.

A model that is idle may go once it has been there for its minimum residency. One with requests on it gives way to a model for which
requests wait, when those have waited for `max_wait_s`: then its rows are preempted, keep place and tokens, and wait for their turn.
A pinned one never goes.

              loaded           + min_residency_s
    idle      |---- stays ----------|------ may go ------------------------------->
    in use    |---- stays ----------|--stays--|------ may go ---------------------->
                                              wanted + max_wait_s, if requests wait

One in use stays in any case for as long as reading it takes, and for `MIN_TURN_S`: else models whose figures are 0 would push each other
out before anybody was served, and an adapter would find its base gone whenever it came.

So of two models that do not both fit, each serves for `min_residency_s` at least before the other comes, and neither waits for ever.
Of those that may go, the cheapest to have again go first: the time that reading them takes, for each second since they were used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

NEVER = math.inf
MIN_TURN_S = 0.1


@dataclass(frozen=True, slots=True)
class Standing:
    """A resident model, as it stands when somebody wants its room."""

    name: str
    size_bytes: int
    reload_s: float  # what it takes to have it again: from the host tier if it is there or may be put there, else from files
    resident_since: float
    last_used_at: float  # not after `resident_since`: never used since it came
    num_requests: int = 0  # running on it, or waiting for it
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that does not fit."""

    since: float  # when it was found not to fit
    num_requests: int  # waiting for it; none: somebody loads it ahead of need


@dataclass(frozen=True, slots=True)
class Rules:
    """Figures of the configuration, in seconds."""

    min_residency_s: float
    max_wait_s: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Who goes now; or, if that is nobody, when it is worth looking again: at `until`, NEVER unless something else changes."""

    victims: tuple[str, ...] = ()
    until: float = NEVER
    is_hopeless: bool = False  # even without all that are not pinned there would be too little room


def choose(wanted: Wanted, standings: Iterable[Standing], now: float, rules: Rules, fits: Callable[[tuple[str, ...]], bool]) -> Choice:
    """Decide; `fits(names)` says whether there would be room without these models."""
    free_at = {standing: may_go_at(standing, wanted, rules) for standing in standings if not standing.is_pinned}
    ready = sorted((standing for standing, at in free_at.items() if at <= now), key=lambda standing: _worth(standing, now))
    victims = _fewest(ready, fits)
    if victims is not None:
        return Choice(tuple(victim.name for victim in victims))
    if not fits(tuple(standing.name for standing in free_at)):
        return Choice(is_hopeless=True)
    return Choice(until=_enough_at(free_at, fits))


def may_go_at(standing: Standing, wanted: Wanted, rules: Rules) -> float:
    """From when on a model may leave for another; NEVER, as long as nothing changes."""
    is_used = standing.num_requests > 0 or standing.last_used_at > standing.resident_since
    at = standing.resident_since + (rules.min_residency_s if is_used else 0.0)
    if not standing.num_requests:
        return at
    turn_ends_at = standing.resident_since + max(MIN_TURN_S, standing.reload_s)
    return max(at, turn_ends_at, wanted.since + rules.max_wait_s) if wanted.num_requests else NEVER


def _worth(standing: Standing, now: float) -> tuple[int, float, str]:
    """The less, the sooner it goes: idle ones first, then cheap ones that were not used for long."""
    idle_s = max(now - standing.last_used_at, 1.0)
    return standing.num_requests, standing.reload_s / idle_s, standing.name


def _fewest(ready: list[Standing], fits: Callable[[tuple[str, ...]], bool]) -> list[Standing] | None:
    """The cheapest that make room together, without those that are not needed for it; None if all of them do not."""
    chosen: list[Standing] = []
    for standing in ready:
        chosen.append(standing)
        if fits(_names(chosen)):
            break
    else:
        return None
    for standing in sorted(chosen[:-1], key=ready.index, reverse=True):
        others = [other for other in chosen if other is not standing]
        if fits(_names(others)):
            chosen = others
    return chosen


def _enough_at(free_at: dict[Standing, float], fits: Callable[[tuple[str, ...]], bool]) -> float:
    """The earliest time at which those that may go then are enough."""
    for at in sorted(set(free_at.values())):
        if fits(_names(standing for standing, free in free_at.items() if free <= at)):
            return at
    return NEVER


def _names(standings: Iterable[Standing]) -> tuple[str, ...]:
    return tuple(standing.name for standing in standings)
