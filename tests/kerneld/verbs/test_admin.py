"""Verbs of the administrator that touch what runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kerneld.calls import Caller, CheckpointArgs, Limits, ListArgs, Principal, Role
from kerneld.errors import KernelError, NotFound, WrongState
from memory.page import Tier
from tests.kerneld.rig import ADMIN, ANN, BOB, Rig, in_loop, oracle, prompt_of, running
from tests.kerneld.small_disk import full_disk


@in_loop
async def test_a_removed_tenant_leaves_nothing_whatever_it_was_doing(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        kept = await rig.alloc(ANN)
        idle, busy = await rig.alloc(BOB), await rig.alloc(BOB)
        await rig.infer(idle, prompt_of(1, 21), 8, caller=BOB)
        await rig.kernel.checkpoint(BOB, CheckpointArgs(idle))
        with pytest.raises(WrongState, match=r"has 2 contexts and 1 images; use force \(`kernelctl tenant rm --force`\)\."):
            await rig.kernel.remove_tenant(ADMIN, "lab/bob", False)
        task = rig.begin(busy, prompt_of(2, 9), 400, caller=BOB)
        beside = rig.begin(kept, prompt_of(3, 9), 60)
        await rig.until(lambda: len(rig.tokens(busy)) > 20)
        removing = asyncio.ensure_future(rig.kernel.remove_tenant(ADMIN, "lab/bob", True))
        late = asyncio.ensure_future(rig.alloc(BOB))
        assert await removing >= 2
        await asyncio.gather(late, return_exceptions=True)
        assert (await task).reason == "cancelled"
        assert (await beside).tokens == oracle(prompt_of(3, 9), 60)
        assert [context.tenant for context in rig.machine.contexts] == ["lab/ann"]
        assert rig.machine.devices.first.pager.ledger.used("lab/bob", Tier.DEVICE) == 0
        assert rig.machine.devices.first.pager.ledger.used("lab/bob", Tier.HOST) == 0
        assert not (await rig.kernel.list_images(ADMIN, ListArgs(everybody=True))).items
        with pytest.raises(NotFound):
            await rig.kernel.set_tenant(ADMIN, "lab/bob", 2, None)
        await rig.die_and_return()
        assert [context.tenant for context in rig.machine.contexts] == ["lab/ann"]


@in_loop
async def test_tenants_with_equal_weights_get_equal_service_while_both_queue(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        hers = [await rig.alloc(ANN) for _ in range(30)]
        his = [await rig.alloc(BOB) for _ in range(6)]
        order: list[str] = []

        async def follow(context: str, caller: Caller, seed: int) -> None:
            await rig.infer(context, prompt_of(seed, 9), 30, caller=caller)
            order.append(caller.principal.name)

        rig.machine.scheduler.set_max_running("lab", 2)
        await asyncio.gather(
            *[follow(context, ANN, seed) for seed, context in enumerate(hers)],
            *[follow(context, BOB, seed + 50) for seed, context in enumerate(his)],
        )
        last_of_his = max(idx for idx, name in enumerate(order) if name == "bob")
        assert order[: last_of_his + 1].count("ann") <= 9


@in_loop
async def test_accounts_that_could_not_be_written_are_written_later(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.infer(await rig.alloc(), prompt_of(1, 9), 8)
        with full_disk(), pytest.raises(KernelError):
            await rig.machine.usage.write(rig.machine.store.usage)
        await rig.infer(await rig.alloc(), prompt_of(2, 5), 2)
        used = rig.machine.usage.accounts.totals("lab/ann")
        assert (used.input_tokens, used.output_tokens) == (14, 10)
        await rig.stop()
        await rig.start()
        rig.is_worker_replaced = True
        info = next(tenant for tenant in rig.kernel.list_tenants(ADMIN, ListArgs()).items if tenant.path == "lab/ann")
        assert (info.input_tokens, info.output_tokens) == (14, 10)


@in_loop
async def test_a_tenant_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        with full_disk(), pytest.raises(Exception, match="disk"):
            await rig.kernel.add_tenant(ADMIN, "lab/eve", 1, Limits())
        assert "lab/eve" not in rig.machine.tenants
        await rig.kernel.add_tenant(ADMIN, "other/deep/eve", 3, Limits(max_contexts=1))
        paths = [tenant.path for tenant in rig.kernel.list_tenants(ADMIN, ListArgs()).items]
        assert {"other", "other/deep", "other/deep/eve"} <= set(paths)
        eve = Caller(Principal("eve", "other/deep/eve", frozenset({Role.USER})))
        assert [tenant.path for tenant in rig.kernel.list_tenants(eve, ListArgs()).items] == ["other", "other/deep", "other/deep/eve"]


@in_loop
async def test_a_drain_says_what_ended_and_what_is_left(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        first, second = await rig.alloc(), await rig.alloc()
        quick = rig.begin(first, prompt_of(1, 9), 3)
        await quick
        rig.worker.hold()
        rig.begin(second, prompt_of(2, 9), 30)
        await rig.until(lambda: len(rig.machine.requests) == 1)
        drained = await rig.kernel.drain(ADMIN, 0.05)
        assert (drained.finished, drained.left_for_next_start) == (0, 1)
        await rig.die_and_return()
        assert (await rig.attach(second, 9)).tokens == oracle(prompt_of(2, 9), 30)


@in_loop
async def test_changes_of_a_tenant_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        limits = Limits(max_queued=3)
        await asyncio.gather(rig.kernel.set_tenant(ADMIN, "lab/ann", 5, None), rig.kernel.set_tenant(ADMIN, "lab/ann", None, limits))

        row = rig.machine.tenants.get("lab/ann")

        assert (row.weight, row.limits) == (5, limits)
