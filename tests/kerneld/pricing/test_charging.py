"""What a request costs its tenant: what it computed, by the tariff that it was admitted by, whatever happened on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerneld.accounts import Accounts
from kerneld.calls import FinishReason
from kerneld.fairshare import FairShare
from kerneld.pricing.charging import Charging
from kerneld.pricing.tariff import UNCALIBRATED, Tariff
from kerneld.request import Request

MakeRequest = Callable[..., Request]
ODD = Tariff(input_ns=12_345, cached_ns=1_234, output_ns=98_765, context_ns=7)
DEAR = Tariff(input_ns=1_000_000, cached_ns=100_000, output_ns=2_000_000, context_ns=999)


def new_charging(*tenants: str) -> Charging:
    shares = FairShare()
    for tenant in tenants or ("lab",):
        shares.add(tenant)
    charging = Charging(shares)
    charging.tariffs.put("m", ODD)
    return charging


def service(charging: Charging, tenant: str = "lab") -> int:
    return charging._shares.service(tenant)


def expect(charging: Charging, num_tokens: int, tenant: str = "lab") -> None:
    """Have so much output expected of a tenant."""
    charging.forecast.restore({tenant: (num_tokens,) if num_tokens else ()})


def generate(charging: Charging, request: Request, num_tokens: int) -> int:
    cost = charging.output(request, num_tokens)
    request.context.tokens.extend([0] * num_tokens)
    return cost


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # a factory has nothing to reset
@given(
    num_input=st.integers(0, 3000),
    num_cached=st.integers(0, 4000),
    expected=st.integers(0, 200),
    steps=st.lists(st.integers(1, 9), max_size=30),
    reason=st.sampled_from(FinishReason),
    restarts=st.sets(st.integers(0, 30), max_size=3),
    preemptions=st.sets(st.integers(0, 30), max_size=3),
)
def test_charges_less_the_refund_are_what_came_exactly(  # invariants 1 and 2
    make_request: MakeRequest,
    *,
    num_input: int,
    num_cached: int,
    expected: int,
    steps: list[int],
    reason: FinishReason,
    restarts: set[int],
    preemptions: set[int],
) -> None:
    charging = new_charging()
    expect(charging, expected)
    request = make_request("lab", num_input=num_input, max_tokens=300)

    charged = charging.admission(request, num_cached)
    charging.tariffs.put("m", DEAR)  # for those who come later
    for idx, num_tokens in enumerate(steps):
        if idx in preemptions:
            charged += charging.admission(request, 0)
        if idx in restarts:
            request = restarted(make_request, request)
        charged += generate(charging, request, num_tokens)
    refund = charging.end(request, reason)

    cost = ODD.input_us(min(num_cached, num_input), num_input) + ODD.output_us(num_input, sum(steps))
    assert charged - refund == service(charging) == cost
    assert request.num_prepaid == 0


def restarted(make_request: MakeRequest, request: Request) -> Request:
    """The request as recovery makes it again."""
    again = make_request("lab", num_input=request.output_start, max_tokens=request.max_tokens)
    again.context.tokens.extend(request.context.tokens[request.output_start :])
    again.is_charged, again.tariff = True, request.tariff
    again.num_prepaid, again.num_charged = request.num_prepaid, request.num_generated
    return again


def test_a_request_pays_by_the_tariff_of_its_admission(make_request: MakeRequest) -> None:
    charging = new_charging()
    early, late = make_request("lab", num_input=100), make_request("lab", num_input=100)
    charging.admission(early, 0)
    charging.tariffs.put("m", DEAR)

    assert charging.admission(late, 0) == DEAR.input_us(0, 100)
    assert (charging.output(early, 1), charging.output(late, 1)) == (ODD.output_us(100, 1), DEAR.output_us(100, 1))


def test_a_cancel_before_the_first_token_gives_back_the_output_and_not_the_input(make_request: MakeRequest) -> None:  # invariant 1
    charging = new_charging()
    expect(charging, 50)
    request = make_request("lab", num_input=100, max_tokens=80)

    paid = charging.admission(request, 0)
    refund = charging.end(request, FinishReason.CANCELLED)

    assert (paid, refund) == (ODD.input_us(0, 100) + ODD.output_us(100, 50), ODD.output_us(100, 50))
    assert service(charging) == ODD.input_us(0, 100)


def test_no_more_output_is_prepaid_than_the_request_may_generate(make_request: MakeRequest) -> None:
    charging = new_charging()
    expect(charging, 50)
    request = make_request("lab", num_input=10, max_tokens=8)

    charging.admission(request, 0)

    assert request.num_prepaid == 8


def test_a_scoring_request_pays_for_its_input_alone(make_request: MakeRequest) -> None:
    charging = new_charging()
    expect(charging, 50)
    request = make_request("lab", num_input=100)
    request.score_from = 0

    paid = [charging.expected_cost(request, 0), charging.admission(request, 0), charging.end(request, FinishReason.STOP)]

    assert paid == [ODD.input_us(0, 100), ODD.input_us(0, 100), 0]


def test_what_ends_before_it_was_admitted_costs_nothing(make_request: MakeRequest) -> None:
    charging = new_charging()

    assert (charging.end(make_request("lab"), FinishReason.CANCELLED), service(charging)) == (0, 0)


def test_expected_cost_is_what_admission_charges_and_then_what_is_left(make_request: MakeRequest) -> None:
    charging = new_charging()
    expect(charging, 20)
    request = make_request("lab", num_input=100)

    before = charging.expected_cost(request, 30)
    paid = charging.admission(request, 30)
    expect(charging, 60)  # others went on longer meanwhile
    after = charging.expected_cost(request, 30)
    generate(charging, request, 70)

    assert (before, after) == (paid, ODD.output_us(120, 40))
    assert charging.expected_cost(request, 30) == 0


def test_the_tokens_of_a_step_are_charged_as_one_by_one(make_request: MakeRequest) -> None:
    costs = []
    for is_together in (False, True):
        charging = new_charging("ann", "bob")
        expect(charging, 2, "ann")
        requests = [make_request(tenant, num_input=50 + idx) for idx, tenant in enumerate(("ann", "bob", "ann", "bob"))]
        for request in requests:
            charging.admission(request, 0)
        told = 0
        for _ in range(4):
            pairs = [(request, 1) for request in requests]
            told += charging.outputs(pairs) if is_together else sum(charging.output(*pair) for pair in pairs)
        costs.append((told, service(charging, "ann"), service(charging, "bob")))

    assert costs[0] == costs[1]


def test_a_surcharge_comes_on_top_of_every_charge_and_is_not_given_back(make_request: MakeRequest) -> None:
    charging = new_charging()
    expect(charging, 1)
    told: list[int] = []

    def surcharge(_request: Request, cost: int) -> int:
        told.append(cost)
        return 5

    charging.surcharge = surcharge
    request = make_request("lab", num_input=10)

    paid = [charging.admission(request, 0), generate(charging, request, 1), generate(charging, request, 1)]
    charging.end(request, FinishReason.STOP)

    assert told == [ODD.input_us(0, 10) + ODD.output_us(10, 1), ODD.output_us(11, 1)]
    assert paid == [told[0] + 5, 0, told[1] + 5]
    assert service(charging) == sum(told) + 10


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.CANCELLED])
def test_one_token_probes_buy_no_cheaper_admission(make_request: MakeRequest, reason: FinishReason) -> None:
    charging = new_charging()
    for _ in range(3):
        past = make_request("lab", num_input=10)
        charging.admission(past, 0)
        generate(charging, past, 80)
        charging.end(past, FinishReason.STOP)
    for _ in range(100):
        probe = make_request("lab", num_input=1, max_tokens=1 if reason is FinishReason.LENGTH else 100)
        charging.admission(probe, 0)
        generate(charging, probe, 1)
        charging.end(probe, reason)
    hog = make_request("lab", num_input=10)

    charging.admission(hog, 0)

    assert hog.num_prepaid == 80


def test_probes_that_stop_by_themselves_gain_one_prepaid_output_and_nothing_in_the_end(make_request: MakeRequest) -> None:
    charging = new_charging()
    for _ in range(100):
        probe = make_request("lab", num_input=0)
        charging.admission(probe, 0)
        generate(charging, probe, 1)
        charging.end(probe, FinishReason.STOP)
    spent = service(charging)
    lags = []
    for _ in range(10):
        hog = make_request("lab", num_input=0)
        charging.admission(hog, 0)
        lags.append(ODD.output_us(0, 100) - (service(charging) - spent))
        for _ in range(100):
            generate(charging, hog, 1)
        charging.end(hog, FinishReason.STOP)
        spent += ODD.output_us(0, 100)
        assert service(charging) == spent

    assert max(lags) < ODD.output_us(0, 100)
    assert lags[5:] == [0] * 5


def test_outputs_and_tariffs_are_kept(make_request: MakeRequest) -> None:
    charging, again = new_charging(), new_charging()
    request = make_request("lab")
    charging.admission(request, 0)
    generate(charging, request, 7)
    charging.end(request, FinishReason.STOP)

    lost = charging.changes()
    charging.unkept(lost)
    again.restore(charging.changes())

    assert again.accounts() == charging.accounts() == lost == Accounts(outputs={"lab": (7,)}, tariffs={"m": ODD})
    assert charging.changes() == Accounts()


def test_a_tenant_that_is_gone_leaves_nothing() -> None:
    charging = new_charging()
    expect(charging, 9)

    charging.forget("lab")

    assert charging.accounts().outputs == {}
    assert charging.changes().outputs == {"lab": ()}


def test_a_model_that_was_not_measured_is_charged_by_token_counts(make_request: MakeRequest) -> None:
    charging = new_charging()
    request = make_request("lab", num_input=100, model="other")

    assert charging.admission(request, 60) == UNCALIBRATED.input_us(60, 100) == 460


def test_outputs_of_a_tenant_that_was_removed_before_a_restart_are_left_out() -> None:
    charging = new_charging("lab")
    charging.restore(Accounts(outputs={"lab": (5,), "gone": (7,)}))

    assert charging.accounts().outputs == {"lab": (5,)}
