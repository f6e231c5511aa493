"""Who asks for little goes before who has many rows, if both are nearly level."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kerneld.calls import Priority
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.request import Request
from kerneld.scheduler import Scheduler

MakeRequest = Callable[..., Request]
COURTESY_US = 10_000


def new_scheduler(courtesy_us: int = COURTESY_US) -> Scheduler:
    shares = FairShare()
    for path in ("hog", "other", "light"):
        shares.add(path)
    scheduler = Scheduler(shares, SchedulerPolicy(courtesy_us=courtesy_us))
    scheduler.set_resident("m", True)
    return scheduler


def beside_a_hog(
    scheduler: Scheduler, make_request: MakeRequest, num_rows: int = 3, ahead_us: int = COURTESY_US
) -> tuple[Request, Request]:
    """The next request of a hog, of which some run already, and a late one of somebody who is ahead of it."""
    for _ in range(num_rows):
        request = make_request("hog", num_input=0)
        scheduler.enqueue(request)
        scheduler.admit(request, 0)
    following, late = make_request("hog"), make_request("light")
    scheduler.enqueue(following)
    scheduler.enqueue(late)
    scheduler.shares.charge("light", ahead_us)
    return following, late


def test_who_has_nothing_running_goes_first_as_long_as_it_is_nearly_level(make_request: MakeRequest) -> None:
    scheduler = new_scheduler()
    following, late = beside_a_hog(scheduler, make_request)

    within = scheduler.next_candidate()
    scheduler.shares.charge("light", 1)

    assert (within, scheduler.next_candidate()) == (late, following)


@pytest.mark.parametrize(
    "reason", ["it has a row", "the other one has no two", "it asks for as much", "it is of a laxer class", "it is off"]
)
def test_the_order_is_that_of_the_accounts_where(make_request: MakeRequest, reason: str) -> None:
    scheduler = new_scheduler(0 if reason == "it is off" else COURTESY_US)
    following, late = beside_a_hog(scheduler, make_request, 1 if reason == "the other one has no two" else 3)
    if reason == "it has a row":
        scheduler.admit(late, 0)
        scheduler.enqueue(make_request("light"))
    elif reason == "it asks for as much":
        for _ in range(2):
            scheduler.enqueue(make_request("light"))
    elif reason == "it is of a laxer class":
        late.context.priority = Priority.BATCH
        scheduler.reorder(late)

    assert scheduler.next_candidate() is following


def test_whoever_goes_first_is_charged_and_does_not_go_on_going_first(make_request: MakeRequest) -> None:
    scheduler = new_scheduler()
    following, late = beside_a_hog(scheduler, make_request, ahead_us=0)
    scheduler.admit(late, 0)
    scheduler.shares.charge("light", COURTESY_US + 1)
    scheduler.finish(late)
    scheduler.enqueue(make_request("light"))

    assert scheduler.next_candidate() is following
