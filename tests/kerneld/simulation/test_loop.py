"""The event loop in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from kerneld.simulation.loop import VirtualLoop


def test_time_jumps_from_one_callback_to_the_next() -> None:
    loop, seen = VirtualLoop(), list[tuple[str, float]]()
    loop.call_later(5.0, lambda: seen.append(("late", loop.time())))
    loop.call_at(2.0, lambda: seen.append(("early", loop.time())))
    loop.run(10.0)
    loop.close()

    assert seen == [("early", 2.0), ("late", 5.0)]
    assert loop.time() == 10.0


def test_callbacks_of_one_instant_run_in_the_order_in_which_they_were_asked_for() -> None:
    loop, seen = VirtualLoop(), list[int]()
    for number in range(5):
        loop.call_at(1.0, seen.append, number)
    loop.call_soon(seen.append, -1)
    loop.run(2.0)
    loop.close()

    assert seen == [-1, 0, 1, 2, 3, 4]


def test_a_cancelled_timer_does_not_run() -> None:
    loop, seen = VirtualLoop(), list[int]()
    loop.call_later(1.0, seen.append, 1).cancel()
    loop.call_later(2.0, seen.append, 2)
    loop.run(3.0)
    loop.close()

    assert seen == [2]


def test_what_is_due_at_the_end_waits_for_the_next_run() -> None:
    loop, seen = VirtualLoop(), list[int]()
    loop.call_at(3.0, seen.append, 3)
    loop.run(3.0)
    before = list(seen)
    loop.run(3.5)
    loop.close()

    assert (before, seen) == ([], [3])


def test_a_time_that_has_passed_means_now() -> None:
    loop, seen = VirtualLoop(), list[float]()
    loop.run(4.0)
    loop.call_at(1.0, lambda: seen.append(loop.time()))
    loop.run(5.0)
    loop.close()

    assert seen == [4.0]


def test_it_is_the_running_loop_only_while_it_runs() -> None:
    loop, seen = VirtualLoop(), list[bool]()
    loop.call_soon(lambda: seen.append(asyncio.get_running_loop() is loop))
    loop.run(1.0)
    loop.close()

    assert seen == [True]
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_an_error_of_a_callback_is_raised() -> None:
    loop = VirtualLoop()
    loop.call_soon(lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        loop.run(1.0)
    loop.close()
