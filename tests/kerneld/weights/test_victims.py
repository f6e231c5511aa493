"""Who leaves the device for whom; and two tenants with two models that do not both fit, on a clock of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.weights.victims import MIN_TURN_S, NEVER, Choice, Rules, Standing, Wanted, choose, may_go_at

RULES = Rules(min_residency_s=10.0, max_wait_s=30.0)
NOW = 1000.0
WANTED = Wanted(since=NOW, num_requests=1)
IDLE = Standing("idle", size_bytes=4, reload_s=1.0, resident_since=0.0, last_used_at=500.0)


def room_for(needed: int, standings: Iterable[Standing]) -> Callable[[tuple[str, ...]], bool]:
    """Room of which all is taken by these models."""
    sizes = {standing.name: standing.size_bytes for standing in standings}
    return lambda names: sum(sizes[name] for name in names) >= needed


def ask(needed: int, *standings: Standing, wanted: Wanted = WANTED, now: float = NOW) -> Choice:
    return choose(wanted, standings, now, RULES, room_for(needed, standings))


def test_the_model_that_is_cheapest_to_have_again_goes_first() -> None:
    warm = replace(IDLE, name="warm", reload_s=0.1)
    assert ask(4, IDLE, warm).victims == ("warm",)


def test_of_equal_models_the_one_not_used_for_longest_goes() -> None:
    assert ask(4, IDLE, replace(IDLE, name="fresh", last_used_at=900.0)).victims == ("idle",)


def test_nobody_goes_who_is_not_needed_for_the_room() -> None:
    small = replace(IDLE, name="small", size_bytes=1, reload_s=0.01)
    assert ask(4, IDLE, small).victims == ("idle",)
    assert sorted(ask(5, IDLE, small).victims) == ["idle", "small"]


def test_a_pinned_model_never_goes() -> None:
    assert ask(4, replace(IDLE, is_pinned=True)) == Choice(is_hopeless=True)


def test_a_model_in_use_has_a_turn_even_where_the_figures_are_nothing() -> None:
    busy, wanted = replace(IDLE, num_requests=1, resident_since=NOW), replace(WANTED, since=0.0)
    assert may_go_at(busy, wanted, Rules(0.0, 0.0)) == NOW + busy.reload_s
    assert may_go_at(replace(busy, reload_s=0.0), wanted, Rules(0.0, 0.0)) == NOW + MIN_TURN_S
    assert may_go_at(replace(busy, num_requests=0), wanted, Rules(0.0, 0.0)) == NOW


def test_a_model_in_use_goes_when_others_waited_long_enough() -> None:
    busy = replace(IDLE, num_requests=2)
    assert ask(4, busy) == Choice(until=NOW + RULES.max_wait_s)
    assert ask(4, busy, now=NOW + RULES.max_wait_s).victims == ("idle",)


def test_a_model_in_use_stays_for_a_load_that_nobody_waits_for() -> None:
    assert ask(4, replace(IDLE, num_requests=1), wanted=Wanted(0.0, 0)) == Choice(until=NEVER)


def test_a_model_that_was_used_stays_for_its_minimum_residency() -> None:
    fresh = replace(IDLE, resident_since=NOW - 4, last_used_at=NOW - 1)
    assert ask(4, fresh) == Choice(until=NOW + 6)


def test_a_model_that_nobody_used_yet_has_no_minimum_residency() -> None:
    assert ask(4, replace(IDLE, resident_since=NOW - 1, last_used_at=0.0)).victims == ("idle",)


def test_idle_models_go_before_those_in_use() -> None:
    busy = replace(IDLE, name="busy", num_requests=1, reload_s=0.0)
    assert ask(4, busy, IDLE, wanted=Wanted(0.0, 1)).victims == ("idle",)


def test_when_some_may_go_only_later_that_time_is_named() -> None:
    later = replace(IDLE, name="later", resident_since=NOW - 3, last_used_at=NOW)
    busy = replace(IDLE, name="busy", num_requests=1)
    assert ask(8, IDLE, later, busy).until == NOW + 7
    assert ask(12, IDLE, later, busy).until == NOW + RULES.max_wait_s


STANDINGS = st.lists(
    st.builds(
        Standing,
        name=st.uuids().map(str),
        size_bytes=st.integers(1, 8),
        reload_s=st.floats(0, 10),
        resident_since=st.floats(NOW - 50, NOW),
        last_used_at=st.floats(NOW - 50, NOW),
        num_requests=st.integers(0, 2),
        is_pinned=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda standing: standing.name,
)


@given(standings=STANDINGS, needed=st.integers(1, 20), waited=st.floats(0, 60), num_waiting=st.integers(0, 2))
def test_a_choice_keeps_every_promise(standings: list[Standing], needed: int, waited: float, num_waiting: int) -> None:
    wanted = Wanted(NOW - waited, num_waiting)
    fits = room_for(needed, standings)
    choice = choose(wanted, standings, NOW, RULES, fits)
    victims = [standing for standing in standings if standing.name in choice.victims]
    assert all(not victim.is_pinned and may_go_at(victim, wanted, RULES) <= NOW for victim in victims)
    if victims:
        assert fits(choice.victims)
        assert not any(fits(tuple(name for name in choice.victims if name != victim.name)) for victim in victims)
    unpinned = tuple(standing.name for standing in standings if not standing.is_pinned)
    assert choice.is_hopeless is (not victims and not fits(unpinned))
    assert victims or choice.is_hopeless or choice.until > NOW


@dataclass
class Tenant:
    """Sends a request every `every_s`, each of which computes for `takes_s`; they wait when the model is not there."""

    model: str
    every_s: float
    takes_s: float


@pytest.mark.parametrize(
    ("tenants", "most_loads"),
    [
        ((Tenant("a", 0.5, 0.1), Tenant("b", 0.5, 0.1)), 61),  # short requests, idle in between: a switch per minimum residency
        ((Tenant("a", 1.0, 5.0), Tenant("b", 1.0, 5.0)), 21),  # never idle: a switch per longest wait
        ((Tenant("a", 1.0, 5.0), Tenant("b", 60.0, 0.1)), 21),  # one that is never idle, one that comes now and then
    ],
    ids=["short", "busy", "mixed"],
)
def test_two_models_that_do_not_both_fit_do_not_thrash(tenants: tuple[Tenant, Tenant], most_loads: int) -> None:
    """Ten minutes, tenth by tenth; a switch takes no time at all, which is what thrashing would like best."""
    resident, since, num_loads = "a", 0.0, 1
    wanted_since: dict[str, float] = {}
    last_used, longest_wait = {"a": 0.0, "b": 0.0}, 0.0
    queues: dict[str, list[float]] = {"a": [], "b": []}
    running: dict[str, float] = {}
    for tick in range(6000):
        now = tick / 10
        for tenant in tenants:
            if tick % round(tenant.every_s * 10) == 0:
                queues[tenant.model].append(now)
            if tenant.model == resident and running.get(resident, now) <= now:
                if running.pop(resident, None) is not None:
                    last_used[resident] = now
                if queues[resident]:
                    queues[resident].pop(0)
                    running[resident] = now + tenant.takes_s
        other = "b" if resident == "a" else "a"
        if queues[other]:
            wanted = Wanted(wanted_since.setdefault(other, now), len(queues[other]))
            standing = Standing(resident, 1, 1.0, since, last_used[resident], len(queues[resident]) + (resident in running))
            if choose(wanted, [standing], now, RULES, bool).victims:
                running.clear()
                longest_wait = max(longest_wait, now - wanted_since.pop(other))
                resident, since, num_loads = other, now, num_loads + 1
    assert num_loads <= most_loads
    assert num_loads > 2, "each had its turn"
    assert longest_wait <= RULES.max_wait_s + 0.1
