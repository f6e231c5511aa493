"""Which model that does not fit is next, and loads that a limit holds back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.models import Model
from kerneld.weights.heldloads import HeldLoads
from kerneld.weights.line import Line
from tests.kerneld.conftest import FakeClock

MAX_WAIT_S = 30.0


def model_called(name: str) -> Model:
    return Model(name=name, path="", max_positions=0, quant="", weights_hash="", registered_by="", tokenizer=None, template=None)


class Waiting:
    """A line, the urgencies of those in it, and a clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.line = Line(self.clock, MAX_WAIT_S)
        self.urgency: dict[str, tuple[int, ...]] = {}
        self.parked: set[str] = set()  # models whose requests are all parked for something else
        self.line.urgency = self.urgency.get
        self.line.is_wanted = lambda model: model.name in self.urgency or model.name in self.parked

    def join(self, name: str, *urgency: int) -> None:
        if urgency:
            self.urgency[name] = urgency
        self.line.join(model_called(name))

    @property
    def first(self) -> str:
        return self.line.first().model.name


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_a_load_has_the_place_of_its_best_waiter(waiting: Waiting) -> None:  # invariant 1
    waiting.join("batch", 0, 900)
    waiting.join("interactive", 0, 100)
    assert waiting.first == "interactive"

    waiting.urgency["batch"] = (0, 50)  # somebody better came
    assert waiting.first == "batch"


def test_a_model_that_nobody_waits_for_comes_after_those_that_are_wanted(waiting: Waiting) -> None:
    waiting.join("by hand")
    waiting.join("also by hand")
    assert waiting.first == "by hand"
    waiting.join("wanted", 7)
    assert waiting.first == "wanted"


def test_a_model_whose_requests_are_parked_is_wanted_too(waiting: Waiting) -> None:
    waiting.join("by hand")
    waiting.parked.add("parked")
    waiting.join("parked")
    assert waiting.first == "parked"
    waiting.clock.advance(MAX_WAIT_S)
    waiting.join("urgent", 1)
    assert waiting.first == "parked"


def test_nobody_is_overtaken_for_longer_than_the_longest_wait(waiting: Waiting) -> None:
    waiting.join("patient", 1000)
    waiting.clock.advance(MAX_WAIT_S - 1)
    waiting.join("urgent", 1)
    assert waiting.first == "urgent"
    waiting.clock.advance(1)
    assert waiting.first == "patient"


def test_who_tries_again_has_waited_since_the_first_time(waiting: Waiting) -> None:  # invariant 2
    patient = model_called("patient")
    waiting.urgency["patient"] = (1000,)
    waiting.line.leave(waiting.line.join(patient))
    waiting.clock.advance(MAX_WAIT_S)
    waiting.join("urgent", 1)
    waiter = waiting.line.join(patient)
    assert waiting.first == "patient"

    waiting.clock.advance(MAX_WAIT_S)  # both are overdue: who tried again is the older one still
    assert waiting.first == "patient"

    waiting.line.leave(waiter)
    waiting.line.forget(patient)
    waiting.clock.advance(-MAX_WAIT_S)
    waiting.line.join(patient)
    assert waiting.first == "urgent"


def test_a_clock_that_goes_back_makes_nobody_wait_longer_than_the_bound(waiting: Waiting) -> None:
    waiting.join("patient", 1000)
    waiting.clock.advance(-5000)
    waiting.join("urgent", 1)
    assert waiting.first == "urgent"
    waiting.clock.advance(MAX_WAIT_S)
    assert waiting.first == "patient"


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 20)), min_size=1, max_size=30))
def test_whoever_waited_longest_beyond_the_bound_is_first(arrivals: list[tuple[int, float]]) -> None:
    waiting, since = Waiting(), {}
    for number, (urgency, pause) in enumerate(arrivals):
        waiting.clock.advance(pause)
        waiting.join(str(number), urgency)
        since[str(number)] = waiting.clock.now
        overdue = [name for name, at in since.items() if waiting.clock.now - at >= MAX_WAIT_S]
        expected = overdue[0] if overdue else min(since, key=lambda name: (waiting.urgency[name], int(name)))
        assert waiting.first == expected or since[waiting.first] == since[expected]


# --------------------------------------------------------------------------------------------------------------------------- held back


@pytest.fixture
def held(waiting: Waiting) -> HeldLoads:
    return HeldLoads(waiting.clock)


def test_a_load_is_held_back_until_its_time(held: HeldLoads, waiting: Waiting) -> None:
    held.hold("m", "lab", 60.0)
    waiting.clock.advance(59.0)
    assert held.seconds_left("m") == 1.0
    waiting.clock.advance(1.0)
    assert (held.seconds_left("m"), held.holds_others("m", "guest")) == (0.0, False)


def test_a_clock_that_goes_back_holds_no_load_longer(held: HeldLoads, waiting: Waiting) -> None:
    held.hold("m", "lab", 60.0)
    waiting.clock.advance(20.0)
    assert held.seconds_left("m") == 40.0
    waiting.clock.advance(-5000.0)
    assert held.seconds_left("m") == 40.0
    waiting.clock.advance(40.0)
    assert held.seconds_left("m") == 0.0


def test_the_earliest_time_counts_and_who_is_not_held_back_lets_it_go(held: HeldLoads) -> None:
    held.hold("m", "lab", 60.0)
    assert (held.holds_others("m", "lab"), held.holds_others("m", "guest")) == (False, True)
    held.hold("m", "guest", 20.0)
    held.hold("m", "guest", 90.0)
    assert held.seconds_left("m") == 20.0
    held.hold("m", "other", 0.0)
    assert held.seconds_left("m") == 0.0
