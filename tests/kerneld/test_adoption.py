"""Adoption: what a new front takes over of both tiers below the device, and what it leaves nothing of."""

from __future__ import annotations

from pathlib import Path

from kerneld.calls import ContextState
from tests.kerneld.rig import ANN, BOB, Rig, Sizes, in_loop, oracle, prompt_of, running
from tests.kerneld.test_disktier import settled, tier_of

SIZES = Sizes(device_slabs=16, host_slabs=16, disk_slabs=32)


def host_pages(rig: Rig) -> int:
    """Pages that lie in the host tier, whoever has them."""
    host = rig.machine.host
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
        host = rig.machine.host
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
