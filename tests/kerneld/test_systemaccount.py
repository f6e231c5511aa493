"""What no tenant pays."""

from __future__ import annotations

from collections.abc import Callable

from kerneld.request import Request
from kerneld.systemaccount import SystemAccount

MakeRequest = Callable[..., Request]


def test_having_pages_again_is_counted_once_under_the_cause_that_took_them(make_request: MakeRequest) -> None:
    account, request = SystemAccount(), make_request()
    request.lost_row_for = "rows"

    account.had_back(request, 0.5)
    account.had_back(request, 0.25)
    request.lost_row_for = "worker"
    account.had_back(request, 0.000_001)

    assert account.us == {"rows": 500_000, "worker": 1}


def test_a_first_seat_costs_the_system_nothing(make_request: MakeRequest) -> None:
    account = SystemAccount()

    account.had_back(make_request(), 1.0)

    assert account.us == {}
