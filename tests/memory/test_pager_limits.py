"""The pager on random walks while limits, guarantees, weights and pins change: contents hold, books agree, promises are kept."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from memory.errors import GuaranteeConflict
from memory.ledger import Kind, lineage
from memory.page import Tier
from tests.memory.test_pager_content import (
    NUM_DEVICE_SLABS,
    NUM_DISK_SLABS,
    NUM_HOST_SLABS,
    OWNERS,
    PAGE_TOKENS,
    SLAB,
    WALK,
    PagerContent,
    is_possible,
)

NAMES = ("lab", *OWNERS)


class PagerLimits(PagerContent):
    """The verbs and plans of any daemon, and an administrator who changes his mind."""

    def start(self, write_behind: bool, device: int, host: int, disk: int, limit: bool) -> None:
        super().start(write_behind, device, host, disk, limit)
        self.has_limits = True  # an excess that is given back stays so, whatever happens to its plan

    start.hypothesis_stateful_initialize_rule = PagerContent.start.hypothesis_stateful_initialize_rule  # type: ignore[attr-defined]

    @rule(name=st.sampled_from(NAMES), tier=st.sampled_from(list(Tier)), guarantee=st.integers(0, 2), more=st.integers(0, 3))
    def set_limit(self, name: str, tier: Tier, guarantee: int, more: int) -> None:
        ledger = self.pager.ledger
        guarantee_bytes, limit_bytes = guarantee * SLAB // 2, (guarantee + more) * SLAB // 2 if more else 0
        try:
            ledger.check_limit(name, tier, guarantee_bytes, limit_bytes)
        except GuaranteeConflict:
            return
        ledger.set_limit(name, tier, guarantee_bytes, limit_bytes)
        self.num_changes += 1

    @rule(name=st.sampled_from(NAMES), weight=st.integers(0, 4))
    def set_weight(self, name: str, weight: int) -> None:
        self.pager.ledger.set_weight(name, weight)

    @rule(number=st.integers(0, 9), cut=st.integers(0, 3))
    def pin(self, number: int, cut: int) -> None:
        ctx = self.pick(number)
        if ctx is not None:
            self.pager.pin(ctx.table, max(ctx.valid - cut * PAGE_TOKENS, 0))
            self.num_changes += 1

    def try_plan(self, picks: list[tuple[int, int]]) -> None:
        ledger = self.pager.ledger
        takers = {name for number, _more in picks if (ctx := self.pick(number)) is not None for name in lineage(ctx.table.owner)}
        promised = {name: size for name, size in ledger.guarantees(Tier.DEVICE).items() if name not in takers}
        before = {name: min(ledger.used(name, Tier.DEVICE), size) for name, size in promised.items()}

        super().try_plan(picks)

        for name, size in before.items():
            assert ledger.used(name, Tier.DEVICE) >= size, "use below a guarantee is not reclaimed for others"

    @invariant()
    def excess_is_known(self) -> None:
        ledger = self.pager.ledger
        for tier in Tier:
            over = [name for name in NAMES if 0 < ledger.limit(name, tier).limit_bytes < ledger.used(name, tier)]
            assert ledger.in_excess(tier) == tuple(sorted(over))

    @invariant()
    def use_adds_up(self) -> None:
        ledger = self.pager.ledger
        for tier in Tier:
            accounts = ledger.accounts(tier)
            own = {account.owner: sum(account.kinds.values()) for account in accounts}
            assert sum(own.values()) == sum(ledger.kind_bytes(tier, kind) for kind in Kind)
            for account in accounts:
                below = sum(size for owner, size in own.items() if account.owner in lineage(owner))
                assert account.used_bytes == below


TestPagerLimits = PagerLimits.TestCase
TestPagerLimits.settings = settings(max_examples=30, stateful_step_count=40)

LIMIT_WALK: tuple[tuple[str, int, dict[str, Sequence[object]]], ...] = (
    *WALK,
    ("set_limit", 10, {"name": NAMES, "tier": list(Tier), "guarantee": range(3), "more": range(4)}),
    ("set_weight", 2, {"name": NAMES, "weight": range(5)}),
    ("pin", 4, {"number": range(10), "cut": range(4)}),
)


@pytest.mark.parametrize("seed", range(60))
def test_promises_are_kept_on_a_random_walk(seed: int) -> None:
    draw = random.Random(seed)
    machine = PagerLimits()
    sizes = draw.randint(3, NUM_DEVICE_SLABS), draw.randint(0, NUM_HOST_SLABS), draw.randint(0, NUM_DISK_SLABS)
    machine.start(draw.random() < 0.5, *sizes, False)

    for _ in range(80):
        name, _weight, arguments = draw.choices(LIMIT_WALK, weights=[weight for _name, weight, _arguments in LIMIT_WALK])[0]
        if is_possible(machine, name):
            getattr(machine, name)(**{argument: draw.choice(values) for argument, values in arguments.items()})
        machine.integrity()
        machine.excess_is_known()
        machine.use_adds_up()
        machine.host_copies_hold_what_they_say()
        machine.disk_copies_hold_what_they_say()
    machine.teardown()
