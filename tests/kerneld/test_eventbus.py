"""Events: told to subscribers, written to the log, kept for those who follow."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
from collections.abc import Callable

import pytest

from kerneld import events
from kerneld.calls import EventRecord, FinishReason
from kerneld.eventbus import EVENTS_MISSED, EventBus
from kerneld.events import Event, ModelLoaded, ModelUnloaded, RequestFinished, TenantChanged, WorkerLost

EVENT_CLASSES = [item for _, item in inspect.getmembers(events, inspect.isclass) if issubclass(item, Event) and dataclasses.fields(item)]
LOG_FIELDS = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


@pytest.fixture
def bus(clock: Callable[[], float]) -> EventBus:
    return EventBus(clock, capacity=4)


def publish(bus: EventBus, num_events: int) -> None:
    for i in range(num_events):
        bus.publish(TenantChanged(f"t{i}", "added"))


def read(bus: EventBus, since: int = 0) -> list[EventRecord]:
    async def scenario() -> list[EventRecord]:
        return [record async for record in bus.follow(since, follow=False)]

    return asyncio.run(scenario())


@pytest.mark.parametrize("event_class", EVENT_CLASSES)
def test_an_event_is_a_frozen_value_that_the_log_can_take(event_class: type[Event]) -> None:
    names = {field.name for field in dataclasses.fields(event_class)}

    assert event_class.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert not hasattr(event_class(*[0] * len(names)), "__dict__")
    assert names & LOG_FIELDS == set()
    assert names & {"prompt", "text", "tokens", "secret", "content"} == set()


def test_subscribers_get_the_event_itself(bus: EventBus) -> None:
    seen: list[Event] = []
    bus.subscribe(seen.append)

    bus.publish(ModelUnloaded("m", 7))

    assert seen == [ModelUnloaded("m", 7)]


def test_records_have_a_number_a_time_and_facts_as_text(bus: EventBus) -> None:
    bus.publish(RequestFinished("r", "c", "t", FinishReason.STOP, 1, 0, 2, 0.5, 1.5))

    (record,) = read(bus)

    assert (record.sequence, record.at, record.name) == (1, 1000.0, "RequestFinished")
    assert (record.facts["reason"], record.facts["output_tokens"], record.facts["total_s"]) == ("stop", "2", "1.5")


def test_a_reader_begins_where_it_says(bus: EventBus) -> None:
    publish(bus, 3)

    assert [record.sequence for record in read(bus, since=2)] == [2, 3]
    assert read(bus, since=4) == []


def test_one_who_asks_for_all_gets_what_is_left_without_a_complaint(bus: EventBus) -> None:
    publish(bus, 6)

    assert [record.sequence for record in read(bus)] == [3, 4, 5, 6]


def test_one_who_comes_late_is_told_what_it_missed(bus: EventBus) -> None:
    publish(bus, 9)

    records = read(bus, since=2)

    assert [(record.sequence, record.name) for record in records][:2] == [(5, EVENTS_MISSED), (6, "TenantChanged")]
    assert records[0].facts == {"count": "4"}


def test_a_follower_gets_what_comes(bus: EventBus) -> None:
    async def scenario() -> list[int]:
        following = bus.follow()
        numbers = []
        publish(bus, 1)
        numbers.append((await anext(following)).sequence)
        waiting = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0)
        publish(bus, 2)
        numbers.append((await waiting).sequence)
        numbers.append((await anext(following)).sequence)
        await following.aclose()
        return numbers

    assert asyncio.run(scenario()) == [1, 2, 3]


def test_a_slow_follower_is_told_how_much_it_lost(bus: EventBus) -> None:
    async def scenario() -> list[tuple[str, str]]:
        following = bus.follow()
        publish(bus, 1)
        await anext(following)
        publish(bus, 7)  # the ring holds four of them
        seen = [await anext(following) for _ in range(5)]
        await following.aclose()
        return [(record.name, record.facts.get("count", "")) for record in seen]

    assert asyncio.run(scenario()) == [(EVENTS_MISSED, "3"), *[("TenantChanged", "")] * 4]


def test_events_are_logged_at_their_level_with_their_facts(bus: EventBus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kerneld.events")

    bus.publish(WorkerLost("cpu", 42, "killed", 3))
    bus.publish(ModelLoaded("m", 1, 0.0532970070016745))
    bus.publish(RequestFinished("r", "c", "t", FinishReason.STOP, 1, 0, 2, 0.5, 1.5))

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", "WorkerLost"), ("INFO", "ModelLoaded")]
    assert vars(caplog.records[0])["num_requests"] == 3
    assert vars(caplog.records[1])["seconds"] == 0.053297, "to the microsecond"
