"""Faults of the disk tier: whatever the disk does, every context says what it would have said, and the books agree."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kerneld.calls import Caller, ContextState, FinishReason, ForkArgs
from kerneld.disk.events import DiskPageCorrupt, DiskTierFailed, PagesFetched, PagesSpilled
from kerneld.disk.pagefile import SUPERBLOCK_BYTES
from kerneld.errors import DiskFull, Unavailable
from memory.page import Tier
from tests.kerneld.conftest import FakeClock
from tests.kerneld.disk.frame_files import BrokenFile, FullFile, GatedFile, SlowToWrite
from tests.kerneld.disk.test_tier import SMALL, Tape, settled, tier_of
from tests.kerneld.rig import ANN, GRANULE, Output, Rig, Sizes, in_loop, oracle, prompt_of, running

NUM_PAGES = 26  # of a context as `asleep` makes it


async def asleep(rig: Rig, seed: int = 1, caller: Caller = ANN) -> str:
    """A context that is suspended to disk, and resumed: all of it is far."""
    context = await rig.alloc(caller)
    await rig.infer(context, prompt_of(seed, 98), 4, caller=caller)
    info = await rig.kernel.suspend_to_disk(caller, context)
    assert info.pages.disk == NUM_PAGES
    await rig.kernel.resume(caller, context)
    return context


async def wakes_as_ever(rig: Rig, context: str, caller: Caller = ANN) -> Output:
    """Go on with a context, and see that it says what it should."""
    before = rig.tokens(context)
    output = await rig.infer(context, max_tokens=4, caller=caller)
    assert output.tokens == oracle(before, 4)
    return output


def recomputed(output: Output) -> tuple[int, int]:
    """Pages that came back, and pages that were computed again."""
    assert output.finished is not None
    return output.finished.usage.pages_restored, output.finished.usage.pages_recomputed


def is_fetching(rig: Rig, context_id: str) -> bool:
    """Whether pages of a context are on their way from disk."""
    context = rig.machine.contexts.find(context_id)
    assert context is not None
    assert context.table is not None
    return rig.machine.devices.first.pager.num_fetching(context.table, context.num_tokens) > 0


# ------------------------------------------------------------------------------------------------------------------------- bad bytes


@in_loop
async def test_a_page_with_a_wrong_checksum_is_never_served(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        tape, context = Tape(rig), await asleep(rig)
        file = tier_of(rig).file
        frames = [frame for frame, header in file.scan() if header.num_tokens == 4]
        with file.path.open("r+b") as raw:
            raw.seek(SUPERBLOCK_BYTES + frames[10] * GRANULE + 200)
            raw.write(b"\xff\xfe\xfd")

        output = await wakes_as_ever(rig, context)

        restored, again = recomputed(output)
        assert restored + again == NUM_PAGES
        assert again > 0
        assert tape.count(DiskPageCorrupt) == 1


@in_loop
async def test_a_frame_that_holds_another_page_is_never_served(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        tape, mine, other = Tape(rig), await asleep(rig, 1), await asleep(rig, 2)
        file = tier_of(rig).file
        frames = [frame for frame, _header in file.scan()]
        with file.path.open("r+b") as raw:  # the first page of each in the place of the other's last
            raw.seek(SUPERBLOCK_BYTES + frames[0] * GRANULE)
            image = raw.read(512)
            raw.seek(SUPERBLOCK_BYTES + frames[NUM_PAGES + 3] * GRANULE)
            raw.write(image)

        await wakes_as_ever(rig, mine)
        await wakes_as_ever(rig, other)

        assert tape.count(DiskPageCorrupt) == 1


@in_loop
async def test_a_file_cut_short_under_us_costs_only_what_it_held(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        tape, context = Tape(rig), await asleep(rig)
        os.truncate(tier_of(rig).file.path, SUPERBLOCK_BYTES + 20 * GRANULE)

        output = await wakes_as_ever(rig, context)

        assert recomputed(output)[1] > 0
        assert tape.count(DiskTierFailed) == 1


# ---------------------------------------------------------------------------------------------------------------------- the disk is gone


@in_loop
async def test_contexts_on_a_disk_that_is_gone_are_computed_again(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        tape, context = Tape(rig), await asleep(rig)
        tier_of(rig).mover.file = BrokenFile()

        output = await wakes_as_ever(rig, context)

        assert recomputed(output) == (0, NUM_PAGES)
        assert tape.pages(PagesFetched) == 0


@in_loop
async def test_a_disk_that_takes_nothing_is_left_alone_and_costs_nothing(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        tape, context = Tape(rig), await rig.alloc()
        tier_of(rig).mover.file = BrokenFile()
        await rig.infer(context, prompt_of(1, 98), 4)

        with pytest.raises(Unavailable, match="disk tier failed"):
            await rig.kernel.suspend_to_disk(ANN, context)
        await rig.kernel.resume(ANN, context)
        output = await wakes_as_ever(rig, context)

        assert recomputed(output)[1] == 0, "nothing was lost"
        assert (tape.pages(PagesSpilled), tape.count(DiskTierFailed)) == (0, 1)


# --------------------------------------------------------------------------------------------------------------------------- full tiers


@in_loop
async def test_a_context_that_its_tenants_limit_keeps_off_the_disk_says_so(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 98), 4)
        rig.machine.devices.first.pager.ledger.set_limit("lab", Tier.DISK, 0, 1)

        with pytest.raises(DiskFull, match="26 of its pages are still in memory: lab is at its limit of the disk tier, 1 B"):
            await rig.kernel.suspend_to_disk(ANN, context)


@in_loop
async def test_what_finds_no_room_on_the_host_is_computed(tmp_path: Path) -> None:
    sizes = replace(SMALL, host_slabs=2)  # sixteen pages
    async with running(Rig(tmp_path, sizes)) as rig:
        contexts = []
        for seed in range(4):
            context = await rig.alloc()
            await rig.infer(context, prompt_of(seed, 98), 4)
            await settled(rig)
            contexts.append(context)

        for context in contexts:
            await wakes_as_ever(rig, context)
            await settled(rig)


@in_loop
async def test_a_full_disk_tier_loses_pages_and_no_tokens(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, replace(SMALL, disk_slabs=2))) as rig:
        contexts = [await rig.alloc() for _ in range(8)]
        for seed, context in enumerate(contexts):
            await rig.infer(context, prompt_of(seed, 98), 4)
            await settled(rig)

        for context in contexts:
            await wakes_as_ever(rig, context)
            await settled(rig)


# ------------------------------------------------------------------------------------------------------------------------------ restarts


@in_loop
async def test_a_page_file_of_another_version_is_begun_anew(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        context = await asleep(rig)
        with tier_of(rig).file.path.open("r+b") as raw:
            raw.seek(8)
            raw.write(b"\x63")

        await rig.die_and_return()
        await rig.load()

        assert rig.stat(context).pages.disk == 0
        await wakes_as_ever(rig, context)


@in_loop
async def test_pages_of_contexts_that_are_gone_are_punched_out_at_the_next_start(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        kept, freed = await asleep(rig, 1), await asleep(rig, 2)
        tier_of(rig).mover.file = GatedFile(tier_of(rig).file)
        rig.machine.devices.first.pager.take_freed_disk(0)
        image = tier_of(rig).file.path.read_bytes()
        await rig.kernel.free(ANN, freed)
        await settled(rig)
        tier_of(rig).file.path.write_bytes(image)  # as if it had died before it made holes

        await rig.die_and_return()
        await rig.load()

        assert rig.stat(kept).pages.disk == NUM_PAGES
        assert sum(1 for _place in tier_of(rig).file.scan()) == NUM_PAGES
        await wakes_as_ever(rig, kept)


@in_loop
@pytest.mark.parametrize("has_worker_kept", [False, True])
async def test_a_front_that_dies_while_pages_are_on_their_way(tmp_path: Path, has_worker_kept: bool) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        context = await asleep(rig)
        gate = tier_of(rig).mover.file = GatedFile(tier_of(rig).file)
        rig.begin(context, max_tokens=4)
        await rig.until(lambda: gate.num_waiting > 0)
        before = rig.tokens(context)

        asyncio.get_running_loop().call_later(0.05, gate.let)
        await rig.die_and_return(keeps_worker=has_worker_kept)
        await rig.load()
        await rig.until(lambda: not rig.machine.requests)

        assert rig.tokens(context) == [*before, *oracle(before, 4)]


@in_loop
async def test_a_worker_that_dies_while_pages_are_on_their_way(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        far, near = await asleep(rig, 1), await rig.alloc()
        gate = tier_of(rig).mover.file = GatedFile(tier_of(rig).file)
        before = rig.tokens(far)
        waiting = rig.begin(far, max_tokens=4)
        await rig.until(lambda: gate.num_waiting > 0)
        running_on = rig.begin(near, prompt_of(7, 20), 40)
        await rig.until(lambda: len(rig.tokens(near)) > 25)

        assert rig.worker is not None
        rig.worker.die()
        await rig.until(lambda: len(rig.workers) == 2)
        gate.let()

        assert (await running_on).tokens == oracle(prompt_of(7, 20), 40)
        assert (await waiting).tokens == oracle(before, 4)


# ---------------------------------------------------------------------------------------------------------------------- while one waits


@in_loop
async def test_a_request_that_waits_for_the_disk_stops_nobody(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, replace(SMALL, max_rows=1))) as rig:
        far, near = await asleep(rig, 1), await rig.alloc()
        gate = tier_of(rig).mover.file = GatedFile(tier_of(rig).file)
        before = rig.tokens(far)
        waiting = rig.begin(far, max_tokens=4)
        await rig.until(lambda: rig.stat(far).state is ContextState.BLOCKED)

        passed = await rig.infer(near, prompt_of(2, 20), 4)
        gate.let()

        assert passed.tokens == oracle(prompt_of(2, 20), 4)
        assert (await waiting).tokens == oracle(before, 4)


@in_loop
async def test_a_request_that_waits_for_the_disk_can_be_cancelled(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        far = await asleep(rig)
        gate = tier_of(rig).mover.file = GatedFile(tier_of(rig).file)
        waiting = rig.begin(far, max_tokens=4)
        await rig.until(lambda: gate.num_waiting > 0)

        await rig.kernel.cancel(ANN, far)
        cancelled = await waiting
        gate.let()
        await settled(rig)

        assert cancelled.reason == FinishReason.CANCELLED.value
        assert rig.stat(far).state is ContextState.IDLE
        await wakes_as_ever(rig, far)


@in_loop
async def test_a_context_that_is_freed_while_its_pages_come_leaves_nothing(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        far = await asleep(rig)
        gate = tier_of(rig).mover.file = GatedFile(tier_of(rig).file)
        waiting = rig.begin(far, max_tokens=4)
        await rig.until(lambda: gate.num_waiting > 0)

        await rig.kernel.free(ANN, far)
        gate.let()
        await waiting
        await settled(rig)

        assert [tier.kv_bytes for tier in rig.machine.devices.first.pager.ledger.snapshot()] == [{}, {}, {}]
        assert list(tier_of(rig).file.scan()) == []


@in_loop
async def test_forks_wait_for_the_same_pages_once(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=8, host_slabs=8, disk_slabs=32))) as rig:
        far = await asleep(rig)
        child = (await rig.kernel.fork(ANN, ForkArgs(far))).id
        tape, before = Tape(rig), rig.tokens(far)

        first, second = rig.begin(far, max_tokens=4), rig.begin(child, max_tokens=4)

        assert (await first).tokens == (await second).tokens == oracle(before, 4)
        assert tape.pages(PagesFetched) == NUM_PAGES


@in_loop
async def test_a_deadline_that_passes_while_pages_come_ends_the_request(tmp_path: Path) -> None:
    clock = FakeClock()
    rig = Rig(tmp_path, SMALL, clock=clock)
    async with running(rig):
        far = await asleep(rig)
        gate = tier_of(rig).mover.file = GatedFile(tier_of(rig).file)
        waiting = rig.begin(far, max_tokens=4, deadline_s=5.0)
        await rig.until(lambda: gate.num_waiting > 0)

        clock.advance(6.0)
        late = await waiting
        gate.let()
        await settled(rig)

        assert late.reason == FinishReason.DEADLINE.value
        await wakes_as_ever(rig, far)


@in_loop
async def test_a_mover_that_moves_nothing_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        far = await asleep(rig)
        await tier_of(rig).mover.close()

        assert recomputed(await wakes_as_ever(rig, far)) == (0, NUM_PAGES)


# ---------------------------------------------------------------------------------------------------------------------- shared pages


@in_loop
async def test_pages_that_a_fork_uses_stay_when_the_other_goes_to_disk(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=8, host_slabs=8, disk_slabs=32))) as rig:
        parent = await rig.alloc()
        await rig.infer(parent, prompt_of(1, 98), 4)
        child = (await rig.kernel.fork(ANN, ForkArgs(parent))).id
        worker = rig.worker
        assert worker is not None
        running_on = rig.begin(child, max_tokens=60)
        await rig.until(lambda: len(rig.tokens(child)) > 110)

        await rig.kernel.suspend_to_disk(ANN, parent)

        before = rig.tokens(parent)
        assert (await running_on).tokens == oracle(before, 60)
        await rig.kernel.resume(ANN, parent)
        await wakes_as_ever(rig, parent)


# ---------------------------------------------------------------------------------------------------------------------- room on the host


@in_loop
async def test_who_returns_waits_for_pages_on_their_way_to_disk_rather_than_have_others_lose_theirs(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        context, tier = await asleep(rig), tier_of(rig)
        gate = SlowToWrite(tier.file)
        tier.mover.file = gate
        others = [await rig.alloc() for _ in range(4)]
        for idx, (other, num_tokens) in enumerate(zip(others, (96, 96, 96, 40), strict=True)):
            await rig.infer(other, prompt_of(idx + 2, num_tokens), 4)
        before = [rig.stat(other).pages.lost for other in others]

        returning = asyncio.create_task(wakes_as_ever(rig, context))
        await rig.until(lambda: rig.stat(context).state is ContextState.BLOCKED)
        await rig.until(lambda: gate.num_waiting > 0 and not is_fetching(rig, context))
        state, pages = rig.stat(context).state, rig.stat(context).pages
        lost = [rig.stat(other).pages.lost for other in others]
        gate.let()
        output = await returning

        assert (state, pages.disk > 0, lost) == (ContextState.BLOCKED, True, before), "it waits for room"
        assert recomputed(output) == (NUM_PAGES, 0)


@in_loop
@pytest.mark.parametrize("fault", [FullFile, BrokenFile])
async def test_a_disk_that_fails_under_a_burst_keeps_nobody_waiting(tmp_path: Path, fault: type[FullFile] | type[BrokenFile]) -> None:
    async with running(Rig(tmp_path, replace(SMALL, disk_slabs=64))) as rig:
        contexts, tier = [await asleep(rig, seed) for seed in range(8)], tier_of(rig)

        tier.mover.file = FullFile(tier.file) if fault is FullFile else BrokenFile()
        for _ in range(2):
            await asyncio.gather(*(wakes_as_ever(rig, context) for context in contexts))

        rig.machine.devices.first.pager.check_integrity()
