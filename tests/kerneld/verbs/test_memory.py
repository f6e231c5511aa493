"""The ledger, explanations and fsck, asked of the kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drivers.fake_model import FakeModel
from kerneld.calls import Access, Limits, RegisterArgs, SetArgs
from kerneld.errors import NotFound, QuotaExceeded
from kerneld.remedies import Needer, remedies_of
from memory.errors import OverLimit
from memory.remedy import Action
from tests.kerneld.rig import ADMIN, ANN, BOB, PAGE_TOKENS, SLAB, Rig, Sizes, in_loop, prompt_of, running

FRAME = 256  # of a page on the device
SMALL = Sizes(device_slabs=4, host_slabs=16)  # one slab of weights, three for 48 pages


@in_loop
async def test_a_request_that_waits_for_frames_is_told_what_holds_them_and_what_would_help(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        busy, waiting = await rig.alloc(ANN), await rig.alloc(BOB)
        first = rig.begin(busy, prompt_of(1, 100), 80)
        await rig.until(lambda: len(rig.tokens(busy)) > 110)
        second = rig.begin(waiting, prompt_of(2, 120), 8, caller=BOB)
        await rig.until(lambda: rig.machine.contexts.find(waiting).active_request != "")  # type: ignore[union-attr]

        told = rig.kernel.explain_context(ADMIN, waiting)
        seen_by_bob = rig.kernel.explain_context(BOB, waiting)

        assert [obstacle.code for obstacle in told.obstacles][:1] == ["FRAMES"]
        assert told.obstacles[0].needed_bytes == 32 * FRAME
        assert told.holders[0].name == busy
        assert (told.remedies[0].action, told.remedies[0].subject) == (Action.CANCEL, busy)
        assert told.remedies[0].size_bytes >= told.obstacles[0].needed_bytes - told.obstacles[0].available_bytes
        assert seen_by_bob.remedies[0] == replace(told.remedies[0], subject="")
        assert "" in {holding.name for holding in seen_by_bob.holders}
        assert told.queue is not None
        assert told.queue.running == 1
        with pytest.raises(NotFound):
            rig.kernel.explain_context(ANN, waiting)
        await first
        await second


@in_loop
async def test_a_request_that_its_tenants_limit_holds_back_is_told_of_the_limit(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.set_tenant(ADMIN, "lab/ann", None, Limits(device_bytes=30 * FRAME))
        busy, waiting = await rig.alloc(ANN), await rig.alloc(ANN)
        first = rig.begin(busy, prompt_of(1, 60), 50)
        await rig.until(lambda: len(rig.tokens(busy)) > 70)
        second = rig.begin(waiting, prompt_of(2, 60), 8)
        await rig.until(lambda: rig.machine.contexts.find(waiting).active_request != "")  # type: ignore[union-attr]

        told = rig.kernel.explain_context(ANN, waiting)

        assert [(obstacle.code, obstacle.owner, obstacle.limit_bytes) for obstacle in told.obstacles][:1] == [
            ("LIMIT", "lab/ann", 30 * FRAME)
        ]
        assert (told.remedies[0].action, told.remedies[0].owner) == (Action.RAISE_LIMIT, "lab/ann")
        assert told.remedies[0].size_bytes >= 30 * FRAME
        await first
        await second


@in_loop
async def test_what_is_idle_has_nothing_in_its_way(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(ANN)
        await rig.infer(context, prompt_of(1, 41), 7)

        told = rig.kernel.explain_context(ANN, context)

        assert (told.obstacles, told.remedies, told.queue) == ((), (), None)
        assert (told.placements[0].tier, told.placements[0].num_pages, told.placements[0].size_bytes) == ("device", 12, 12 * FRAME)


@in_loop
async def test_a_model_that_is_not_there_says_what_its_load_would_find(tmp_path: Path) -> None:
    rig = Rig(tmp_path, SMALL)
    path = rig.add_model("big", FakeModel(weights_bytes=4 * SLAB, seed=1))
    async with running(rig):
        await rig.kernel.register_model(ADMIN, RegisterArgs("big", str(path)))
        model = rig.machine.devices.first.models.get("big")
        await rig.machine.devices.first.residency.inspect(model)

        told = rig.kernel.explain_model(ANN, "big")

        assert told.obstacles[0].needed_bytes == 4 * SLAB
        assert (told.remedies[0].action, told.remedies[0].subject) == (Action.UNLOAD, "m")
        assert rig.kernel.explain_model(ANN, "m").placements[0].size_bytes == SLAB
        with pytest.raises(NotFound):
            rig.kernel.explain_model(ANN, "other")


@in_loop
async def test_pins_count_against_the_guarantee_or_half_of_the_device(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        hers, more = await rig.alloc(ANN), await rig.alloc(ANN)
        await rig.infer(hers, prompt_of(1, 60), 4)
        await rig.infer(more, prompt_of(2, 68), 4)

        assert (await rig.kernel.set(ANN, SetArgs(hers, is_pinned=True))).pinned_tokens == 64
        with pytest.raises(QuotaExceeded) as refusal:
            await rig.kernel.set(ANN, SetArgs(more, is_pinned=True))
        assert refusal.value.facts["limit_bytes"] == str(2 * SLAB)
        account = next(each for each in rig.kernel.read_memory(ANN).accounts if (each.owner, each.tier) == ("lab/ann", "device"))
        assert account.pinned_bytes == 64 // PAGE_TOKENS * FRAME
        await rig.die_and_return()
        assert rig.stat(hers).pinned_tokens == 64
        assert (await rig.kernel.set(ANN, SetArgs(hers, is_pinned=False))).pinned_tokens == 0
        await rig.kernel.set(ANN, SetArgs(more, is_pinned=True))


@in_loop
async def test_fsck_reads_every_part_and_finds_a_page_that_does_not_hold(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(ANN)
        await rig.infer(context, prompt_of(1, 41), 7)
        await rig.settle()
        whole = [part async for part in rig.kernel.fsck(ADMIN)]
        assert [part.part for part in whole] == ["books", "host tier", "images", "journal", "database", "audit log"]
        assert not any(part.problems for part in whole)
        table = rig.machine.contexts.find(context).table  # type: ignore[union-attr]
        host = rig.machine.devices.first.host
        assert table is not None
        assert host is not None
        page = rig.machine.devices.first.pager.host_pages(table)[1]
        with host.frame(page.frame, 2 * FRAME) as frame:
            frame[-1] ^= 1
            frame[200] ^= 1

        bad = {part.part: part.problems async for part in rig.kernel.fsck(ADMIN)}

        assert f"context {context}" in bad["host tier"][0]
        assert rig.tokens(context)


@in_loop
async def test_a_request_that_waits_for_a_prefix_on_its_way_says_so(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_step_tokens=8))) as rig:
        first, second = await rig.alloc(ANN), await rig.alloc(ANN)
        leading = rig.begin(first, prompt_of(1, 160), 4)
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        following = rig.begin(second, prompt_of(1, 164), 4)
        await rig.until(lambda: any(request.is_parked for request in rig.machine.requests.values()))

        told = rig.kernel.explain_context(ANN, second)

        assert told.obstacles[0].code == "PREFIX"
        await leading
        await following


@in_loop
async def test_an_error_names_no_context_of_somebody_else_in_the_same_tenant(tmp_path: Path) -> None:
    amy = replace(ANN, principal=replace(ANN.principal, name="amy"))
    async with running(Rig(tmp_path)) as rig:
        hers, other = await rig.alloc(amy), await rig.alloc(ANN)
        await rig.infer(hers, prompt_of(1, 41), 4, caller=amy)
        await rig.infer(other, prompt_of(2, 41), 4)
        context = rig.machine.contexts.get(amy, hers, Access.READ)
        with pytest.raises(NotFound):
            rig.machine.contexts.look(amy, other)

        shortage = OverLimit("lab/ann", "device", FRAME, 8 * FRAME, 8 * FRAME)
        named = {
            remedy.subject
            for remedy in remedies_of(rig.machine.devices.first, shortage, Needer.of(context))
            if remedy.action is Action.FREE
        }

        assert named == {"", hers}
