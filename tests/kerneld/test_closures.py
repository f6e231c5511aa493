"""Which tenants are closed, and in what order they open."""

from __future__ import annotations

import random

import pytest

from kerneld.closures import Closures
from kerneld.fairshare import FairShare

PATHS = [f"person{number}" for number in range(40)]


class Opened(FairShare):
    """Shares that remember who was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def set_open(self, path: str, is_open: bool) -> None:
        super().set_open(path, is_open)
        if is_open:
            self.opened.append(path)


@pytest.fixture
def shares() -> Opened:
    made = Opened()
    for path in PATHS:
        made.add(path)
    return made


@pytest.fixture
def closures(shares: FairShare) -> Closures:
    return Closures(shares)


def test_tenants_open_in_the_order_in_which_they_were_held_back(shares: Opened, closures: Closures) -> None:
    order = random.Random(1).sample(PATHS, len(PATHS))
    for path in order:
        closures.hold_back(path)

    closures.let_in()

    assert shares.opened == order


def test_a_new_tenant_is_not_held_back_for_one_of_its_name_that_is_gone(shares: Opened, closures: Closures) -> None:
    closures.hold_back("person1")
    shares.remove("person1")
    closures.forget("person1")
    shares.add("person1")

    closures.admitted("person1")
    shares.enqueue("person1")

    assert closures.may_run_on("person1")
    assert shares.pick() == "person1"


def test_a_tenant_at_its_limit_of_rows_stays_closed_when_memory_is_there(shares: Opened, closures: Closures) -> None:
    closures.set_max_running("person1", 1)
    shares.enqueue("person1")
    closures.admitted("person1")
    closures.hold_back("person1")

    closures.let_in()
    at_limit = shares.pick()
    closures.left("person1")

    assert (at_limit, shares.pick()) == (None, "person1")
