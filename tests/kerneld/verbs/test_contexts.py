"""Verbs on contexts over a running daemon: what is shared, what is cut, and what everybody else sees of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from kerneld.calls import Access, AllocArgs, ContextState, Durability, ForkArgs, Grant, ListArgs, SetArgs
from kerneld.errors import DiskFull, KernelError, NotFound, OutOfRange, PermissionDenied, QuotaExceeded, Unavailable, WrongState
from memory.page import Tier
from tests.kerneld.rig import ADMIN, ANN, BOB, Rig, in_loop, oracle, prompt_of, running
from tests.kerneld.small_disk import full_disk


@in_loop
async def test_a_fork_goes_its_own_way_and_copies_one_page_at_most(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        parent = await rig.alloc()
        await rig.infer(parent, prompt_of(1, 21), 8)
        past = rig.tokens(parent)
        assert rig.worker is not None
        before = len(rig.worker.plans)
        children = [(await rig.kernel.fork(ANN, ForkArgs(parent))).id for _ in range(3)]
        inputs = [prompt_of(10 + idx, 2) for idx in range(3)]
        outputs = await asyncio.gather(*[rig.begin(child, given, 9) for child, given in zip(children, inputs, strict=True)])
        for given, output in zip(inputs, outputs, strict=True):
            assert output.tokens == oracle([*past, *given], 9)
        copies = [move for plan in rig.worker.plans[before:] for move in plan.moves if move.source_tier is move.target_tier]
        assert len(copies) <= 3
        assert (await rig.infer(parent, (), 5)).tokens == oracle(past, 5)


@pytest.mark.parametrize("num_turns", [1, 4, 9, 17])
@in_loop
async def test_a_fork_of_a_running_context_has_what_was_journaled(tmp_path: Path, num_turns: int) -> None:
    rig = Rig(tmp_path)
    rig.script.lead = 3
    async with running(rig):
        parent = await rig.alloc()
        task = rig.begin(parent, prompt_of(1, 14), 40)
        await rig.until(lambda: len(rig.tokens(parent)) >= 14 + num_turns)
        child = (await rig.kernel.fork(ANN, ForkArgs(parent))).id
        past = rig.tokens(child)
        assert past == [*prompt_of(1, 14), *oracle(prompt_of(1, 14), len(past) - 14)]
        early = (await rig.kernel.fork(ANN, ForkArgs(parent, at=7))).id
        assert (await rig.infer(child, prompt_of(5, 3), 12)).tokens == oracle([*past, *prompt_of(5, 3)], 12)
        assert (await rig.infer(early, prompt_of(6, 3), 12)).tokens == oracle([*prompt_of(1, 14)[:7], *prompt_of(6, 3)], 12)
        assert (await task).tokens == oracle(prompt_of(1, 14), 40)


@in_loop
async def test_a_granted_fork_by_another_tenant_shares_pages_charged_to_both(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        parent = await rig.alloc()
        await rig.infer(parent, prompt_of(1, 21), 8)
        with pytest.raises(NotFound):
            await rig.kernel.fork(BOB, ForkArgs(parent))
        await rig.kernel.grant(ANN, parent, Grant("principal:bob", frozenset({Access.FORK})))
        child = (await rig.kernel.fork(BOB, ForkArgs(parent))).id
        ledger = rig.machine.devices.first.pager.ledger
        shared = ledger.used("lab/ann", Tier.DEVICE), ledger.used("lab/bob", Tier.DEVICE)
        output = await rig.infer(child, (), 5, caller=BOB)
        assert output.tokens == oracle(rig.tokens(parent), 5)
        assert output.finished is not None
        assert output.finished.usage.cached_tokens == 28
        assert shared[0] == shared[1] > 0
        await rig.kernel.revoke(ANN, parent, "principal:bob")
        with pytest.raises(NotFound):
            await rig.kernel.fork(BOB, ForkArgs(parent))


@pytest.mark.parametrize("at", [0, 1, 3, 4, 5, 16, 28])
@in_loop
async def test_a_truncated_context_goes_on_from_there(tmp_path: Path, at: int) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 21), 8)
        child = (await rig.kernel.fork(ANN, ForkArgs(context))).id
        kept = rig.tokens(context)[:at]
        await rig.kernel.truncate(ANN, context, at)
        rig.check()
        output = await rig.infer(context, prompt_of(2, 6), 9)
        assert output.tokens == oracle([*kept, *prompt_of(2, 6)], 9)
        assert (await rig.infer(child, (), 3)).tokens == oracle(rig.tokens(child)[:29], 3)


@in_loop
async def test_a_context_truncated_while_its_last_quantum_is_in_flight_stays_right(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.script.lead = 4
    async with running(rig):
        context = await rig.alloc()
        for turn in range(8):
            task = rig.begin(context, prompt_of(turn, 5), 60)
            await rig.until(lambda: len(rig.tokens(context)) > 24)
            await rig.kernel.cancel(ANN, context)
            await task
            await rig.kernel.truncate(ANN, context, 11)
            kept = rig.tokens(context)
            assert (await rig.infer(context, prompt_of(turn + 50, 3), 7)).tokens == oracle([*kept, *prompt_of(turn + 50, 3)], 7)
            await rig.kernel.truncate(ANN, context, 0)


@in_loop
async def test_suspended_pages_go_first_and_come_back(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 21), 8)
        assert (await rig.kernel.suspend(ANN, context)).state is ContextState.SUSPENDED
        with pytest.raises(WrongState):
            await rig.infer(context, (), 3)
        with pytest.raises(WrongState):
            await rig.kernel.truncate(ANN, context, 3)
        assert (await rig.kernel.suspend(ANN, context)).state is ContextState.SUSPENDED
        assert (await rig.kernel.resume(ANN, context)).state is ContextState.IDLE
        past = rig.tokens(context)
        assert (await rig.infer(context, (), 3)).tokens == oracle(past, 3)


@in_loop
async def test_a_freed_context_ends_its_request_and_gives_everything_back(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        task = rig.begin(context, prompt_of(1, 21), 100)
        await rig.until(lambda: len(rig.tokens(context)) > 30)
        await rig.kernel.free(ANN, context)
        assert (await task).reason == "cancelled"
        with pytest.raises(NotFound):
            rig.kernel.stat(ANN, context)
        await rig.settle()
        assert rig.machine.journal.reserved_bytes == 0
        rig.check()


@in_loop
async def test_lists_are_cut_into_pages_and_show_what_is_ones_own(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        hers = sorted([await rig.alloc(ANN) for _ in range(7)])
        his = [await rig.alloc(BOB) for _ in range(2)]
        shown: list[str] = []
        token, pages = "", 0
        while True:
            page = rig.kernel.list_contexts(ANN, ListArgs(page_size=3, page_token=token))
            shown += [info.id for info in page.items]
            pages += 1
            if not page.next_page_token:
                break
            token = page.next_page_token
        assert (shown, pages) == (hers, 3)
        everybody = rig.kernel.list_contexts(ADMIN, ListArgs(everybody=True))
        assert {info.id for info in everybody.items} == {*hers, *his}


@in_loop
async def test_another_tenants_handle_is_not_there(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(ANN)
        for call in (
            rig.kernel.free(BOB, context),
            rig.kernel.truncate(BOB, context, 0),
            rig.kernel.suspend(BOB, context),
            rig.kernel.set(BOB, SetArgs(context, nice=1)),
            rig.kernel.cancel(BOB, context),
            rig.kernel.read(BOB, context, 0, 0),
            rig.infer(context, prompt_of(1, 3), 3, caller=BOB),
            rig.attach(context, 0, caller=BOB),
        ):
            with pytest.raises(NotFound):
                await call
        with pytest.raises(NotFound):
            rig.kernel.stat(BOB, context)


@in_loop
async def test_only_the_owner_grants(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(ANN)
        await rig.kernel.grant(ANN, context, Grant("principal:bob", frozenset({Access.WRITE})))
        with pytest.raises(PermissionDenied):
            await rig.kernel.grant(BOB, context, Grant("principal:eve", frozenset({Access.READ})))
        assert (await rig.infer(context, prompt_of(1, 3), 3, caller=BOB)).tokens == oracle(prompt_of(1, 3), 3)


@in_loop
async def test_a_number_out_of_range_changes_nothing(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 9), 3)
        before = rig.tokens(context)
        for call in (
            rig.kernel.truncate(ANN, context, 13),
            rig.kernel.truncate(ANN, context, -1),
            rig.kernel.fork(ANN, ForkArgs(context, at=13)),
            rig.kernel.read(ANN, context, 13, 0),
            rig.attach(context, 13),
            rig.infer(context, prompt_of(1, 1100), 3),
            rig.kernel.set(ANN, SetArgs(context, max_tokens=5000)),
        ):
            with pytest.raises(OutOfRange):
                await call
        assert rig.tokens(context) == before
        rig.check()


@in_loop
async def test_a_disk_that_takes_no_more_refuses_what_begins_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        parent = await rig.alloc()
        await rig.infer(parent, prompt_of(1, 21), 8)
        before = rig.machine.devices.first.pager.ledger.used("lab/ann", Tier.DEVICE)
        with full_disk():
            for call in (rig.kernel.alloc(ANN, AllocArgs("m")), rig.kernel.fork(ANN, ForkArgs(parent))):
                with pytest.raises((DiskFull, Unavailable)):
                    await call
            with pytest.raises(KernelError):
                await rig.infer(parent, prompt_of(2, 3), 3)
            with pytest.raises(KernelError):
                await rig.kernel.truncate(ANN, parent, 3)
        assert len(rig.machine.contexts) == 1
        assert rig.machine.devices.first.pager.ledger.used("lab/ann", Tier.DEVICE) == before
        assert rig.machine.journal.reserved_bytes == 0
        assert len(rig.tokens(parent)) == 29
        past = rig.tokens(parent)
        assert (await rig.infer(parent, (), 4)).tokens == oracle(past, 4)
        rig.check()


@in_loop
async def test_a_tenant_at_its_limit_of_contexts_is_told_whose_limit_it_is(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.set_tenant(ADMIN, "lab", None, replace(rig.machine.tenants.get("lab").limits, max_contexts=2))
        await rig.alloc(ANN)
        await rig.alloc(BOB)
        with pytest.raises(QuotaExceeded) as refusal:
            await rig.alloc(ANN)
        assert refusal.value.facts["holder"] == "lab"


@in_loop
async def test_a_context_of_no_durability_can_do_everything_but_outlive_the_daemon(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(durability=Durability.NONE)
        await rig.infer(context, prompt_of(1, 21), 8)
        child = (await rig.kernel.fork(ANN, ForkArgs(context))).id
        await rig.kernel.truncate(ANN, context, 10)
        await rig.kernel.suspend(ANN, context)
        await rig.kernel.resume(ANN, context)
        kept = rig.tokens(context)
        assert (await rig.infer(context, (), 3)).tokens == oracle(kept, 3)
        assert rig.stat(child).durability is Durability.NONE
        await rig.kernel.free(ANN, child)
