"""How long a step may take."""

from __future__ import annotations

from kerneld.deadline import StepDeadline


def test_what_is_streamed_is_allowed_for_before_it_was_measured() -> None:
    deadline = StepDeadline(floor_s=10.0, factor=20.0)
    assert deadline.limit_s(1) == 10.0
    deadline.stream_s = 3.0
    assert deadline.limit_s(1) == 60.0
