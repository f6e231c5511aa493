"""Adoption: what a new front takes over of both tiers below the device, and what it leaves nothing of."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.calls import ContextState, ForkArgs
from kerneld.disk.events import PagesFetched
from tests.kerneld.disk.test_tier import Tape, settled, tier_of
from tests.kerneld.rig import ANN, BOB, Rig, Sizes, in_loop, oracle, prompt_of, running

SIZES = Sizes(device_slabs=16, host_slabs=16, disk_slabs=32)


def host_pages(rig: Rig) -> int:
    """Pages that lie in the host tier, whoever has them."""
    host = rig.machine.devices.first.host
    assert host is not None
    return sum(1 for _place in host.scan())


@in_loop
async def test_bytes_of_the_host_tier_that_nobody_adopts_are_zeroed(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SIZES)) as rig:
        kept, freed = await rig.alloc(), await rig.alloc(BOB)
        await rig.infer(kept, prompt_of(1, 40), 4)
        await rig.infer(freed, prompt_of(2, 40), 4, caller=BOB)
        await rig.settle()
        await rig.kernel.free(BOB, freed)
        assert host_pages(rig) > 11

        await rig.die_and_return(keeps_worker=True)
        await rig.load()

        assert rig.stat(kept).pages.host == host_pages(rig) == 10
        host = rig.machine.devices.first.host
        assert host is not None
        used = {frame for frame, _header in host.scan()}
        granules = range(0, host.size_bytes // host.granule_bytes, 2)  # a host frame has two
        assert all(not any(host.frame(frame, 512)) for frame in granules if frame not in used)


@in_loop
async def test_a_page_in_both_tiers_is_adopted_from_both(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SIZES)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 98), 4)
        await rig.kernel.suspend_to_disk(ANN, context)
        await rig.kernel.resume(ANN, context)
        before = rig.tokens(context)
        output = await rig.infer(context, max_tokens=4)  # now its full pages are everywhere
        assert output.tokens == oracle(before, 4)
        await settled(rig)

        await rig.die_and_return(keeps_worker=True)
        await rig.load()

        assert (rig.stat(context).pages.host, rig.stat(context).pages.lost) == (26, 0)
        assert sum(1 for _place in tier_of(rig).file.scan()) == 25, "the one that was written is not on disk any more"
        now = rig.tokens(context)
        assert (await rig.infer(context, max_tokens=4)).tokens == oracle(now, 4)


@in_loop
async def test_pages_of_a_model_that_is_not_loaded_again_are_kept(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SIZES)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 98), 4)
        await rig.kernel.suspend_to_disk(ANN, context)
        await rig.kernel.unload_model(ANN, "m")

        await rig.die_and_return()
        await rig.until(lambda: rig.stat(context).pages.disk == 26)
        await rig.kernel.resume(ANN, context)
        before = rig.tokens(context)

        output = await rig.infer(context, max_tokens=4)
        assert output.tokens == oracle(before, 4)
        assert output.finished is not None
        assert output.finished.usage.pages_recomputed == 0
        assert rig.stat(context).state is ContextState.IDLE


@in_loop
@pytest.mark.parametrize("keeps_worker", [False, True])
async def test_forks_share_what_a_tier_holds_once_as_they_did_before_the_restart(tmp_path: Path, keeps_worker: bool) -> None:
    async with running(Rig(tmp_path, SIZES)) as rig:
        parent = await rig.alloc()
        await rig.infer(parent, prompt_of(1, 95), 3)  # 24 full pages and a partial one
        forks = [(await rig.kernel.fork(ANN, ForkArgs(parent))).id for _ in range(3)]
        await rig.infer(forks[0], (5, 6, 7, 8), 1)  # one of them goes its own way behind the 24
        family = [parent, *forks]
        for context in family:
            await rig.kernel.suspend_to_disk(ANN, context)
        num_on_disk = sum(1 for _place in tier_of(rig).file.scan())

        await rig.die_and_return(keeps_worker=keeps_worker)
        await rig.load()
        found = [rig.stat(context).pages for context in family]
        tape, said = Tape(rig), []
        for context in family:
            await rig.kernel.resume(ANN, context)
            before = rig.tokens(context)
            output = await rig.infer(context, max_tokens=2)
            assert output.finished is not None
            said.append((output.tokens == oracle(before, 2), output.finished.usage.pages_recomputed))

        assert num_on_disk == 27, "24 for all, one partial for three, two of the fork that went on"
        assert [(pages.disk + pages.host, pages.shared) for pages in found] == [(25, 25), (26, 24), (25, 25), (25, 25)]
        assert said == [(True, 0)] * 4
        assert tape.pages(PagesFetched) == (0 if keeps_worker else 27), "the host tier of a worker that stayed has them still"


@in_loop
async def test_contexts_that_computed_the_same_side_by_side_keep_one_copy_for_both(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SIZES)) as rig:
        one = await rig.alloc()
        await rig.infer(one, prompt_of(1, 40), 4)
        await rig.kernel.suspend_to_disk(ANN, one)
        other, stranger = await rig.alloc(), await rig.alloc(BOB)
        await rig.infer(other, prompt_of(1, 40), 4)
        await rig.infer(stranger, prompt_of(1, 40), 4, caller=BOB)
        for caller, context in ((ANN, other), (BOB, stranger)):
            await rig.kernel.suspend_to_disk(caller, context)

        await rig.die_and_return()
        await rig.load()

        shared = [rig.stat(context).pages.shared for context in (one, other, stranger)]
        assert shared == [11, 11, 0], "another tenant's pages have other names"
        assert sum(1 for _place in tier_of(rig).file.scan()) == 22
