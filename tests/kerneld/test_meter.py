"""How pages come back is chosen by what it costs, recorded, and measured; on a fake driver that tells the figures it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.contract import CopyTimes
from kerneld.calls import Caller, Principal, Role
from memory.costs import Link
from memory.decisions import Decision, Way
from memory.page import Tier
from tests.kerneld.rig import ADMIN, ANN, GRANULE, PAGE_TOKENS, Rig, Sizes, in_loop, oracle, prompt_of, running

PAGES = 25  # of the contexts here that are full
SMALL = Sizes(device_slabs=4, host_slabs=64)  # 48 pages beside the weights


def rig_with(folder: Path, *, copy_rate: float, prefill_s: float, sizes: Sizes = SMALL, write_behind: bool = True) -> Rig:
    """A rig whose copies take 256 / `copy_rate` seconds a page, and whose tokens take `prefill_s`."""
    rig = Rig(folder, sizes)
    rig.options = {"copy_rate": str(copy_rate), "prefill_s": str(prefill_s)}
    rig.memory = {"write_behind": write_behind}
    return rig


def decisions(rig: Rig, context: str) -> list[Decision]:
    """Those about a context that came back and had something to choose, newest first."""
    found = rig.machine.devices.first.pager.costs.decisions.latest()
    return [each for each in found if each.label == context and each.chosen is not Way.DEVICE and each.measured_s is not None]


async def pushed_out(rig: Rig) -> str:
    """A context of 100 tokens and a few, that others took the device from."""
    first, *others = [await rig.alloc() for _ in range(3)]
    await rig.infer(first, prompt_of(1, 100), 2)
    for seed, other in enumerate(others):
        await rig.infer(other, prompt_of(2 + seed, 100), 20)
    assert rig.stat(first).pages.device < PAGES
    return first


@in_loop
async def test_pages_of_the_host_tier_come_back_where_that_is_cheaper(tmp_path: Path) -> None:
    async with running(rig_with(tmp_path, copy_rate=1e6, prefill_s=0.001)) as rig:
        context = await pushed_out(rig)
        before, num_missing = rig.tokens(context), rig.stat(context).pages.host

        output = await rig.infer(context, max_tokens=4)

        [decision] = decisions(rig, context)
        assert output.tokens == oracle(before, 4)
        assert (decision.chosen, decision.alternative, decision.keep_tokens) == (Way.HOST, Way.RECOMPUTE, decision.num_tokens)
        assert decision.predicted_s == pytest.approx(num_missing * GRANULE / 1e6)
        assert decision.measured_s == pytest.approx(decision.predicted_s)
        assert decision.alternative_s == pytest.approx(num_missing * PAGE_TOKENS * 0.001, rel=0.1)


@in_loop
async def test_pages_are_computed_again_where_that_is_cheaper(tmp_path: Path) -> None:
    async with running(rig_with(tmp_path, copy_rate=1e4, prefill_s=0.001)) as rig:
        context = await pushed_out(rig)
        before, pages = rig.tokens(context), rig.stat(context).pages
        assert pages.host > 0

        output = await rig.infer(context, max_tokens=4)

        [decision] = decisions(rig, context)
        assert output.tokens == oracle(before, 4)
        assert output.finished is not None
        assert output.finished.usage.pages_restored == 0
        assert (decision.chosen, decision.alternative) == (Way.RECOMPUTE, Way.HOST)
        assert decision.alternative_s is not None
        assert decision.alternative_s >= pages.host * GRANULE / 1e4  # what was dropped behind them has to be computed in any case
        assert decision.measured_s == pytest.approx((decision.num_tokens - decision.keep_tokens) * 0.001)
        assert decision.predicted_s == pytest.approx(decision.measured_s)


@in_loop
async def test_a_page_that_is_cheaper_to_compute_is_dropped_not_copied(tmp_path: Path) -> None:
    async with running(rig_with(tmp_path, copy_rate=1e4, prefill_s=0.001, write_behind=False)) as rig:
        context = await pushed_out(rig)

        assert rig.worker is not None
        assert [move for plan in rig.worker.plans for move in plan.moves if move.target_tier is Tier.HOST] == []
        assert rig.stat(context).pages.lost > 0
        dropped = [
            each for each in rig.machine.devices.first.pager.costs.decisions.latest() if each.label == context and each.measured_s is None
        ]
        assert {(each.chosen, each.alternative) for each in dropped} == {(Way.RECOMPUTE, Way.HOST)}
        before = rig.tokens(context)
        assert (await rig.infer(context, max_tokens=4)).tokens == oracle(before, 4)


@in_loop
async def test_what_comes_from_the_disk_is_decided_before_the_seat_and_measured_after(tmp_path: Path) -> None:
    sizes = Sizes(device_slabs=5, host_slabs=8, disk_slabs=32)
    async with running(rig_with(tmp_path, copy_rate=1e9, prefill_s=1.0, sizes=sizes)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 100), 2)
        await rig.kernel.suspend_to_disk(ANN, context)
        await rig.kernel.resume(ANN, context)
        before = rig.tokens(context)

        output = await rig.infer(context, max_tokens=4)

        [decision] = decisions(rig, context)
        assert output.tokens == oracle(before, 4)
        assert (decision.chosen, decision.alternative) == (Way.DISK, Way.RECOMPUTE)
        assert decision.measured_s is not None
        assert decision.alternative_s == pytest.approx(101.0)


@in_loop
async def test_a_context_on_the_device_has_nothing_to_pay(tmp_path: Path) -> None:
    async with running(rig_with(tmp_path, copy_rate=1e6, prefill_s=0.001)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 100), 2)
        await rig.infer(context, max_tokens=2)

        [decision] = rig.machine.devices.first.pager.costs.decisions.latest()
        assert (decision.chosen, decision.predicted_s, decision.measured_s) == (Way.DEVICE, 0.0, 0.0)


@in_loop
async def test_the_figures_are_those_that_the_driver_told(tmp_path: Path) -> None:
    async with running(rig_with(tmp_path, copy_rate=1e6, prefill_s=0.002)) as rig:
        await rig.load()
        [space_id] = rig.machine.devices.first.models.get("m").space_ids
        costs = rig.machine.devices.first.pager.costs

        assert costs.copy_s(Link.HOST_TO_DEVICE, 1_000_000, space_id) == pytest.approx(1.0)
        assert costs.copy_s(Link.DEVICE_TO_HOST, 1_000_000, space_id) == pytest.approx(1.0)
        assert costs.recompute_s(space_id, 0, 100) == pytest.approx(0.2)
        rig.machine.devices.first.seating.meter.measured(CopyTimes(1000, 0.1, 1000, 0.2))
        assert costs.copy_s(Link.HOST_TO_DEVICE, 1000, space_id) == pytest.approx(0.1)


@in_loop
async def test_decisions_are_shown_to_those_who_may_see_the_context(tmp_path: Path) -> None:
    async with running(rig_with(tmp_path, copy_rate=1e6, prefill_s=0.001)) as rig:
        context = await pushed_out(rig)
        await rig.infer(context, max_tokens=4)
        stranger = Caller(Principal("eve", "other", frozenset({Role.USER})))

        mine = rig.kernel.read_memory(ANN, 10).decisions
        latest = rig.kernel.read_memory(ADMIN, 1).decisions

        assert [(each.context_id, each.chosen, each.alternative) for each in mine] == [(context, "host", "recompute")]
        assert latest == mine
        assert rig.kernel.read_memory(stranger, 10).decisions == ()
        assert rig.kernel.read_memory(ADMIN).decisions == ()


@in_loop
async def test_a_removed_model_takes_its_figures_along(tmp_path: Path) -> None:
    async with running(rig_with(tmp_path, copy_rate=1e6, prefill_s=0.002)) as rig:
        await rig.load()
        [space_id] = rig.machine.devices.first.models.get("m").space_ids
        known = rig.machine.devices.first.pager.costs.recompute_s(space_id, 0, 10)

        await rig.kernel.unload_model(ADMIN, "m")
        kept = rig.machine.devices.first.pager.costs.recompute_s(space_id, 0, 10)
        await rig.kernel.remove_model(ADMIN, "m")

        assert known == pytest.approx(0.02)
        assert kept == known
        assert rig.machine.devices.first.pager.costs.recompute_s(space_id, 0, 10) == float("inf")
