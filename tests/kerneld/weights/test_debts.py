"""Loads are paid by those that they serve: no more, no less, whatever happens on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerneld.accounts import together
from kerneld.calls import FinishReason
from kerneld.eventbus import EventBus
from kerneld.fairshare import FairShare
from kerneld.pricing.charging import Charging
from kerneld.request import Request
from kerneld.usage.amounts import SYSTEM
from kerneld.weights.debts import LoadDebts, split

MakeRequest = Callable[..., Request]


class Ledger:
    """Debts, and what was charged for them."""

    def __init__(self) -> None:
        self.events = EventBus(lambda: 0.0)
        self.debts = LoadDebts(self.events)
        self.told: Counter[str] = Counter()  # to whoever keeps accounts of usage
        self.shares: Counter[str] = Counter()  # charged at the end of a residency
        self.surcharged: Counter[str] = Counter()
        self.debts.on_charged = self._tell
        self.debts.charge = self._charge

    def _tell(self, tenant: str, us: int) -> None:
        self.told[tenant] += us

    def _charge(self, tenant: str, us: int) -> None:
        self.shares[tenant] += us

    def serve(self, request: Request, cost_us: int) -> int:
        on_top = self.debts.surcharge(request, cost_us)
        self.surcharged[request.tenant] += on_top
        return on_top

    def check(self, loaded_us: int) -> None:
        """Everything that was loaded was charged, once, and told as it was charged."""
        assert sum(self.told.values()) == loaded_us
        assert self.told == self.shares + self.surcharged + Counter({SYSTEM: self.told[SYSTEM]})


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_who_is_served_pays_as_much_again_until_the_load_is_paid(ledger: Ledger, make_request: MakeRequest) -> None:
    ann, bob = make_request("lab/ann"), make_request("lab/bob")
    ledger.debts.begin("m", 1000)

    assert [ledger.serve(ann, 300), ledger.serve(bob, 600), ledger.serve(ann, 300), ledger.serve(bob, 50)] == [300, 600, 100, 0]
    assert ledger.debts.owed_us("m") == 0
    ledger.debts.end("m")
    ledger.check(1000)


def test_what_is_left_is_split_by_the_service_of_that_residency(ledger: Ledger, make_request: MakeRequest) -> None:
    ledger.debts.begin("m", 1000)
    ledger.serve(make_request("lab/ann"), 100)
    ledger.serve(make_request("lab/bob"), 200)

    ledger.debts.end("m")

    assert ledger.shares == {"lab/ann": 233, "lab/bob": 467}
    ledger.check(1000)


def test_a_load_that_served_nobody_or_that_nobody_asked_for_is_the_systems(ledger: Ledger, make_request: MakeRequest) -> None:
    ledger.debts.begin("unused", 70)
    ledger.debts.begin("pinned", 500, is_system=True)

    assert ledger.serve(make_request("lab", model="pinned"), 300) == 0
    for model in ("unused", "pinned", "never loaded"):
        ledger.debts.end(model)

    assert ledger.told == {SYSTEM: 570}
    ledger.check(570)


def test_a_load_that_brings_a_model_back_leaves_what_is_owed_as_it_is(ledger: Ledger, make_request: MakeRequest) -> None:  # invariant 4
    ledger.debts.begin("m", 1000)
    ledger.serve(make_request("lab/ann"), 300)
    ledger.debts.begin("m", 500, is_system=True)

    assert (ledger.debts.owed_us("m"), ledger.told[SYSTEM]) == (700, 500)
    assert ledger.serve(make_request("lab/bob"), 900) == 700
    ledger.check(1500)


def test_an_adapter_and_its_base_together_cost_no_more_than_the_work(ledger: Ledger, make_request: MakeRequest) -> None:
    request = make_request("lab", model="base")
    request.context.adapter = "adapter"
    ledger.debts.begin("base", 150)
    ledger.debts.begin("adapter", 100)

    assert [ledger.serve(request, 100) for _ in range(3)] == [100, 100, 50]
    assert (ledger.debts.owed_us("base"), ledger.debts.owed_us("adapter")) == (0, 0)


def test_a_removed_tenant_leaves_its_part_to_the_others(ledger: Ledger, make_request: MakeRequest) -> None:
    ledger.debts.begin("m", 1000)
    ledger.serve(make_request("lab/ann"), 100)
    ledger.serve(make_request("lab/bob"), 100)
    ledger.debts.forget("lab/ann")
    ledger.debts.end("m")

    assert ledger.shares == {"lab/bob": 800}
    ledger.debts.begin("m", 1000)
    ledger.serve(make_request("lab/bob"), 100)
    ledger.debts.forget("lab/bob")
    ledger.debts.end("m")
    assert ledger.told[SYSTEM] == 900
    ledger.check(2000)


def test_what_was_paid_for_a_load_is_not_given_back(ledger: Ledger, make_request: MakeRequest) -> None:  # invariant 2
    shares = FairShare()
    shares.add("lab")
    charging = Charging(shares)
    charging.surcharge = ledger.debts.surcharge
    for _ in range(2):  # the second is expected to be as long as the first
        request = make_request("lab", num_input=10, max_tokens=50)
        shares.enqueue("lab")
        charging.admission(request, 0)
        shares.dequeue("lab")
        request.context.tokens.extend(range(50))
        charging.output(request, 50)
        charging.end(request, FinishReason.STOP)
    before = shares.service("lab")
    ledger.debts.begin("m", 1_000_000)
    request = make_request("lab", num_input=10, max_tokens=50)
    charged_us = charging.admission(request, 0)
    refund_us = charging.end(request, FinishReason.CANCELLED)

    assert charged_us == 2 * (charged_us - ledger.told["lab"]), "half of it was for the load"
    assert 0 < refund_us <= charged_us - ledger.told["lab"]
    assert shares.service("lab") - before == charged_us - refund_us
    assert ledger.told["lab"] == charged_us // 2


def test_who_paid_is_told_when_a_load_is_paid(ledger: Ledger, make_request: MakeRequest) -> None:
    told: list[Any] = []
    ledger.events.subscribe(told.append)
    ledger.debts.begin("m", 100)
    ledger.serve(make_request("lab"), 60)
    assert not told
    ledger.serve(make_request("lab"), 60)
    ledger.debts.end("m")

    assert [(event.model, event.tenant, event.load_us) for event in told] == [("m", "lab", 100)]


@given(st.integers(0, 10**9), st.dictionaries(st.text(min_size=1), st.integers(0, 10**9), max_size=8))
def test_a_split_is_exact_and_each_part_within_one_of_its_due(total: int, weights: dict[str, int]) -> None:
    parts, whole = split(total, weights), sum(weights.values())
    assert sum(parts.values()) == total
    if whole:
        assert all(abs(part * whole - total * weights.get(name, 0)) < whole for name, part in parts.items())


moves = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.sampled_from("mn"), st.integers(0, 5000)),
        st.tuples(st.just("ahead"), st.sampled_from("mn"), st.integers(0, 5000)),
        st.tuples(st.just("end"), st.sampled_from("mn"), st.just(0)),
        st.tuples(st.just("forget"), st.sampled_from(["lab/ann", "lab/bob", "guest"]), st.just(0)),
        st.tuples(st.sampled_from(["lab/ann", "lab/bob", "guest"]), st.sampled_from("mn"), st.integers(0, 2000)),
    ),
    max_size=60,
)


@given(moves)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the factory keeps nothing but a count
def test_what_is_charged_is_what_was_loaded(make_request: MakeRequest, moves: list[tuple[str, str, int]]) -> None:  # invariant 1
    ledger, loaded_us = Ledger(), 0
    requests = {(tenant, model): make_request(tenant, model=model) for tenant in ("lab/ann", "lab/bob", "guest") for model in "mn"}
    for what, model, us in moves:
        if what in ("begin", "ahead"):
            ledger.debts.begin(model, us, is_system=what == "ahead")
            loaded_us += us
        elif what == "end":
            ledger.debts.end(model)
        elif what == "forget":
            ledger.debts.forget(model)
        else:
            assert ledger.serve(requests[what, model], us) <= us
        assert sum(ledger.told.values()) + ledger.debts.owed_us("m") + ledger.debts.owed_us("n") == loaded_us
    for name in "mn":
        ledger.debts.end(name)
    ledger.check(loaded_us)


def test_after_a_restart_tenants_that_are_gone_owe_nothing(ledger: Ledger, make_request: MakeRequest) -> None:
    ledger.debts.begin("m", 1000)
    ledger.serve(make_request("lab/ann"), 100)
    ledger.serve(make_request("lab/gone"), 100)
    after = Ledger()

    after.debts.restore(ledger.debts.changes(), lambda tenant: tenant != "lab/gone")
    after.debts.end("m")

    assert after.shares == {"lab/ann": 800}


def test_what_could_not_be_written_of_a_debt_is_told_again(ledger: Ledger, make_request: MakeRequest) -> None:
    ledger.debts.begin("m", 1000)
    ledger.serve(make_request("lab/ann"), 100)
    told = ledger.debts.changes()
    assert not ledger.debts.changes().loads

    ledger.debts.unkept(told)

    assert ledger.debts.changes().loads == told.loads
    assert told.loads["m"].owed_us == 900


def test_what_is_owed_is_written_down_for_a_device() -> None:
    on_gpu, on_cpu, alone = Ledger().debts, Ledger().debts, Ledger().debts
    on_gpu.device, on_cpu.device = "gpu0", "cpu0"
    on_gpu.begin("m", 1000)
    on_cpu.begin("m", 70)
    alone.begin("m", 5)
    books = together([debts.changes() for debts in (on_gpu, on_cpu, alone)])
    assert books is not None
    for device, owed_us in (("gpu0", 1000), ("cpu0", 70), ("", 5)):
        again = Ledger().debts
        again.device = device
        again.restore(books, lambda _tenant: True)
        assert again.owed_us("m") == owed_us
    on_cpu.unkept(books)
    assert list(on_cpu.changes().loads) == ["m@cpu0"], "and those of others are theirs to write again"
