"""Random lives of the scheduler over a small tree: after every event the accounts keep their invariants.

arrive, seat, generate, finish, cancel (waiting, before the first token, later), preempt, restart, reweight, close and open
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kerneld.accounts import Accounts, ShareAccount
from kerneld.calls import FinishReason, Priority
from kerneld.fairshare import MAX_FACTOR, MIN_FACTOR, FairShare
from kerneld.request import UNCOUNTED, Place, Request
from kerneld.scheduler import Scheduler
from kerneld.sharenode import FULL_FACTOR, SCALE, ShareNode
from tests.kerneld.fairness_rig import MODEL, NUM_ROWS, Job, check_heaps, make_request, make_shares

WEIGHTS = {"a": 1, "b": 2, "a/x": 1, "a/y": 3, "b/z": 4, "c": 1}
MAX_INPUT, MAX_OUTPUT = 20, 10
SLICES_US = (0, 150, 600)
U_US = 10 * MAX_INPUT + 20 * MAX_OUTPUT * NUM_ROWS

tenants = st.sampled_from(list(WEIGHTS))


class LifeOfScheduler(RuleBasedStateMachine):
    """Counters of active siblings stay together, heaps in order, and nothing that was charged is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = make_shares(WEIGHTS, FairShare(SLICES_US))
        self.scheduler = self.make_scheduler(self.shares)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.charged = dict.fromkeys(WEIGHTS, 0)
        self.kept: dict[str, bytes] = {}  # what the journal has of the accounts, by path
        self.least_weight = Fraction(1)  # effective, of any node so far
        self.num_requests = 0

    def make_scheduler(self, shares: FairShare) -> Scheduler:
        scheduler = Scheduler(shares)
        scheduler.set_resident(MODEL, True)
        return scheduler

    # ------------------------------------------------------------------------------------------------------------------------ events

    @rule(
        tenant=tenants,
        num_input=st.integers(0, MAX_INPUT),
        max_tokens=st.integers(1, MAX_OUTPUT),
        priority=st.sampled_from(list(Priority)),
        num=st.sampled_from([1, 1, 3]),
    )
    def arrive(self, tenant: str, num_input: int, max_tokens: int, priority: Priority, num: int) -> None:
        for _ in range(num):
            self.num_requests += 1
            job = Job(tenant, num_input, max_tokens, max_tokens, priority=priority)
            request = make_request(job, self.num_requests, float(self.num_requests))
            self.waiting.append(request)
            self.scheduler.enqueue(request)

    @rule()
    def seat(self) -> None:
        """Admit whoever is next, if it fits: requests that have begun count as room, so that at most `NUM_ROWS` are unfinished."""
        request = self.scheduler.next_candidate()
        if request is None or len(self.running) == NUM_ROWS or (not request.is_charged and self.num_started() == NUM_ROWS):
            return
        self.waiting.remove(request)
        self.running.append(request)
        self.charged[request.tenant] += self.scheduler.admit(request, 0)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), num_tokens=st.integers(1, 3))
    def generate(self, data: st.DataObject, num_tokens: int) -> None:
        request = data.draw(st.sampled_from(self.running))
        num_tokens = min(num_tokens, request.num_remaining)
        request.context.tokens.extend([0] * num_tokens)
        self.charged[request.tenant] += self.scheduler.charge_output(request, num_tokens)
        if not request.num_remaining:
            self.end(request, FinishReason.LENGTH)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), reason=st.sampled_from([FinishReason.STOP, FinishReason.CANCELLED]))
    def finish(self, data: st.DataObject, reason: FinishReason) -> None:
        self.end(data.draw(st.sampled_from(self.running)), reason)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.waiting)), FinishReason.CANCELLED)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.running))
        self.running.remove(request)
        self.waiting.append(request)
        self.scheduler.preempt(request)

    @rule(tenant=tenants, limit=st.integers(0, 2))
    def limit(self, tenant: str, limit: int) -> None:
        self.scheduler.set_max_running(tenant, limit)

    @rule(tenant=tenants, weight=st.integers(1, 4))
    def reweight(self, tenant: str, weight: int) -> None:
        if not self.num_started(tenant):  # what was charged at one weight is given back at the same
            self.shares.set_weight(tenant, weight)
            self.note_weights()

    @rule(tenant=tenants, milli=st.sampled_from([MIN_FACTOR, 700, FULL_FACTOR, 1300, MAX_FACTOR]))
    def refactor(self, tenant: str, milli: int) -> None:
        if not self.num_started(tenant):
            self.shares.set_factor(tenant, milli)
            self.note_weights()

    @rule()
    def journal(self) -> None:
        """What changed is kept; a death after this loses nothing."""
        changes = self.scheduler.account_changes()
        if changes is not None:
            self.keep(changes)

    @rule()
    def journal_fails(self) -> None:
        changes = self.scheduler.account_changes()
        if changes is not None:
            self.scheduler.unkept(changes)

    @rule()
    def restart(self) -> None:
        """A new scheduler over what was kept has the same accounts, the same next one, and the same rows."""
        self.journal()
        before = {each.path: each for each in self.shares.snapshot()}
        pick = self.shares.pick()
        weights = {node.path: node.weight for node in self.nodes()}
        limits = dict(self.scheduler._closures._max_running)
        shares = make_shares({path: weight for path, weight in weights.items() if path in WEIGHTS}, FairShare(SLICES_US))
        self.scheduler, self.shares = self.make_scheduler(shares), shares
        for tenant, limit in limits.items():
            self.scheduler.set_max_running(tenant, limit)
        self.scheduler.restore(Accounts(shares=tuple(msgspec.msgpack.decode(each, type=ShareAccount) for each in self.kept.values())))
        self.come_back(before, pick)

    # --------------------------------------------------------------------------------------------------------------------- invariants

    @invariant()
    def counters_of_active_siblings_are_together(self) -> None:
        for parent in self.nodes(with_root=True):
            active = [child.counter for child in parent.children.values() if child.is_active]
            if len(active) > 1:
                gap_us = Fraction(max(active) - min(active), SCALE)
                assert gap_us <= (U_US + SLICES_US[-1]) / self.least_weight

    @invariant()
    def heaps_are_in_order(self) -> None:
        check_heaps(self.shares)

    @invariant()
    def nothing_charged_is_lost(self) -> None:
        for path in WEIGHTS:
            expected = sum(cost for other, cost in self.charged.items() if f"{other}/".startswith(f"{path}/"))
            assert self.shares.service(path) == expected

    @invariant()
    def counters_fit_in_64_bits(self) -> None:
        assert all(-(1 << 63) <= node.counter < 1 << 63 for node in self.nodes())

    # ------------------------------------------------------------------------------------------------------------------------- inside

    def nodes(self, with_root: bool = False) -> list[ShareNode]:
        return [node for node in self.shares._tree if node.path or with_root]

    def num_started(self, tenant: str = "") -> int:
        """Requests that have begun and not ended, of a tenant and all below it."""
        below = f"{tenant}/" if tenant else ""
        return sum(each.is_charged and f"{each.tenant}/".startswith(below) for each in (*self.running, *self.waiting))

    def note_weights(self) -> None:
        self.least_weight = min(self.least_weight, *(Fraction(node.weight * node.factor_milli, FULL_FACTOR) for node in self.nodes()))

    def end(self, request: Request, reason: FinishReason) -> None:
        (self.running if request in self.running else self.waiting).remove(request)
        self.charged[request.tenant] -= self.scheduler.finish(request, reason)

    def keep(self, changes: Accounts) -> None:
        self.kept |= {each.path: msgspec.msgpack.encode(each) for each in changes.shares}

    def come_back(self, before: dict[str, ShareAccount], pick: str | None) -> None:
        """Requests of before the restart: those that ran have their rows again, the others their places."""
        running, waiting = [reborn(each) for each in self.running], [reborn(each) for each in self.waiting]
        self.running, self.waiting = running, waiting
        for request in running:
            self.scheduler.recover(request, is_running=True)
        for request in waiting:
            self.scheduler.recover(request, is_running=False)
        for request in running:
            assert self.scheduler.admit(request, 0) == 0
        after = {each.path: each for each in self.shares.snapshot()}
        assert self.shares.pick() == pick
        assert {path: each for path, each in after.items() if path in before} == before


def reborn(request: Request) -> Request:
    """The same request, as a recovery makes it."""
    return dataclasses.replace(request, ticket=0, turn=0, place=Place.NOWHERE, counted_rank=UNCOUNTED, is_held=False)


TestLifeOfScheduler = LifeOfScheduler.TestCase
TestLifeOfScheduler.settings = settings(stateful_step_count=50)
