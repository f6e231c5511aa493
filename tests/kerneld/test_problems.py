"""What is told of workers that do not come, and when hope is lost."""

from __future__ import annotations

from kerneld.problems import BACKOFF_S, HEALTHY_S, MANY_FAILURES, Problems


def test_workers_that_end_before_they_serve_are_tried_ever_later_and_given_up_after_a_few() -> None:
    problems = Problems()

    delays = [problems.failed(f"try {idx}") for idx in range(MANY_FAILURES - 1)]
    had_hope = not problems.is_final
    delays.append(problems.failed("the last"))

    assert (had_hope, problems.is_final, problems.is_many, problems.last) == (True, True, True, "the last")
    assert delays == list(BACKOFF_S[:MANY_FAILURES])


def test_what_the_driver_calls_hopeless_is_given_up_at_once_and_a_worker_that_serves_ends_it() -> None:
    problems, heard = Problems(), list[str]()
    problems.on_change = lambda: heard.append(problems.last)

    problems.failed("no such library", is_final=True)
    was_final = problems.is_final
    problems.over()

    assert (was_final, problems.is_final, problems.last) == (True, False, "")
    assert heard == ["no such library", ""]


def test_workers_that_served_may_always_come_again() -> None:
    problems = Problems()

    for _ in range(MANY_FAILURES + 1):
        problems.lost("it was killed", ran_s=1.0)

    assert (problems.is_many, problems.is_final) == (True, False)
    assert problems.lost("it was killed", ran_s=HEALTHY_S) == BACKOFF_S[0], "a long run makes up for what was before"
