"""How the latest requests ended."""

from __future__ import annotations

from collections.abc import Callable

from kerneld.calls import Finished, FinishReason, Usage
from kerneld.endings import Endings
from kerneld.request import Request

MakeRequest = Callable[..., Request]


def ended(request: Request) -> Request:
    request.context.last_finished = Finished(FinishReason.DEADLINE, Usage(), "The deadline passed.")
    request.queue_s, request.first_token_at = 2.5, request.arrival + 3.0
    return request


def test_an_ending_tells_how_it_went(make_request: MakeRequest) -> None:
    endings = Endings()
    request = ended(make_request("lab/ann", arrival=100.0))

    endings.note(request, 110.0)

    (found,) = endings.beginning(request.id)
    outlook = found.outlook
    assert (outlook.state, outlook.reason, outlook.detail) == ("finished", "deadline", "The deadline passed.")
    assert (outlook.queue_s, outlook.first_token_s, outlook.ended_at) == (2.5, 3.0, 110.0)
    assert found.owner == "ann"


def test_only_the_latest_are_remembered(make_request: MakeRequest) -> None:
    endings = Endings(2)
    requests = [ended(make_request()) for _ in range(3)]
    for request in requests:
        endings.note(request, 1.0)

    assert [len(endings.beginning(request.id)) for request in requests] == [0, 1, 1]
    assert endings.beginning("0" * 32) == []


def test_a_later_tenant_of_the_same_name_is_told_nothing(make_request: MakeRequest) -> None:
    endings = Endings()
    gone, other = ended(make_request("lab/ann")), ended(make_request("lab/bob"))
    for request in (gone, other):
        endings.note(request, 1.0)

    endings.forget("lab/ann")

    assert endings.beginning(gone.id) == []
    assert endings.beginning(other.id) != []
