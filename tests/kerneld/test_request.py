"""What a request says of itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kerneld.calls import FinishReason, Usage
from kerneld.request import Request, RequestState

MakeRequest = Callable[..., Request]


def test_output_is_what_the_context_has_behind_the_input(make_request: MakeRequest) -> None:  # invariant 1
    request = make_request(num_input=10, max_tokens=5)

    request.context.tokens.extend([1, 2, 3])

    assert (request.num_generated, request.num_remaining) == (3, 2)


@pytest.mark.parametrize(("num_generated", "context_limit", "reason"), [(4, 0, None), (5, 0, "length"), (2, 12, "length"), (1, 12, None)])
def test_its_own_limit_or_that_of_the_context_ends_it(
    make_request: MakeRequest, num_generated: int, context_limit: int, reason: str | None
) -> None:
    request = make_request(num_input=10, max_tokens=5)
    request.context.max_tokens = context_limit

    request.context.tokens.extend([0] * num_generated)

    assert request.length_reason() == (FinishReason(reason) if reason else None)


def test_usage_is_what_was_counted(make_request: MakeRequest) -> None:
    request = make_request(num_input=10)
    request.context.tokens.extend([1, 2])
    request.num_cached, request.queue_s, request.compute_s, request.pages_restored, request.pages_recomputed = 4, 0.5, 1.5, 2, 1

    assert request.usage() == Usage(10, 4, 2, 2, 1, 0.5, 1.5)


def test_it_is_abandoned_when_nobody_read_for_its_grace(make_request: MakeRequest) -> None:
    request = make_request()  # its log's clock stands at 0
    request.detach_grace_s = 1.0
    patient = request.is_abandoned()
    request.detach_grace_s = 0.0

    assert (patient, request.is_abandoned()) == (False, True)


def test_it_is_finished_in_one_state_alone(make_request: MakeRequest) -> None:
    request = make_request()
    seen = []
    for state in RequestState:
        request.state = state
        seen.append(request.is_finished)

    assert seen == [False, False, True]
