"""Free slabs that go back to the device while nobody works, and are here again before anybody does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from drivers.fake_model import FakeModel
from kerneld.calls import ModelState
from tests.kerneld.rig import ANN, SLAB, Rig, Sizes, in_loop, oracle, prompt_of, running


def idle_rig(folder: Path) -> Rig:
    """A daemon that gives back at once what it does not need."""
    rig = Rig(folder, Sizes(device_slabs=12, host_slabs=16))
    rig.memory = {"idle_return_s": 1e-9}
    return rig


async def fall_idle(rig: Rig) -> int:
    """Wait until slabs are away; returns how many."""
    slabs, dispatcher = rig.machine.devices.first.idle_slabs, rig.machine.devices.first.dispatcher

    def is_away() -> bool:
        slabs.tick(is_idle=dispatcher.is_idle and not rig.machine.requests)
        return slabs.num_away > 0 and slabs._shift is None  # the test's way to know that they have left

    await rig.until(is_away)
    return slabs.num_away


@in_loop
async def test_who_comes_finds_every_slab_in_its_place_and_clean(tmp_path: Path) -> None:
    async with running(idle_rig(tmp_path)) as rig:
        context, history = await rig.alloc(), list(prompt_of(1, 20))
        history += (await rig.infer(context, prompt_of(1, 20), 6)).tokens
        for turn in range(3):
            assert await fall_idle(rig) >= 8
            rig.check()
            prompts = {await rig.alloc(): prompt_of(10 * turn + seed, 60) for seed in range(5)}  # 80 pages: more than stayed
            outputs = await asyncio.gather(*[rig.begin(other, prompt, 4) for other, prompt in prompts.items()])
            assert [output.tokens for output in outputs] == [oracle(prompt, 4) for prompt in prompts.values()]
            more = await rig.infer(context, (), 3)
            assert more.tokens == oracle(history, 3)
            history += more.tokens
            for other in prompts:
                await rig.kernel.free(ANN, other)
            rig.check()


@in_loop
async def test_weights_wait_for_slabs_that_are_away(tmp_path: Path) -> None:
    rig = idle_rig(tmp_path)
    rig.add_model("wide", FakeModel(weights_bytes=6 * SLAB, seed=1))
    async with running(rig):
        assert await fall_idle(rig) > 6
        assert (await rig.load("wide")).state is ModelState.RESIDENT
        rig.check()


@in_loop
async def test_a_new_worker_has_every_slab(tmp_path: Path) -> None:
    async with running(idle_rig(tmp_path)) as rig:
        context = await rig.alloc()
        told = (await rig.infer(context, prompt_of(3, 20), 4)).tokens
        await fall_idle(rig)
        assert rig.worker is not None
        rig.worker.die()
        assert (await rig.infer(context, (), 4)).tokens == oracle([*prompt_of(3, 20), *told], 4)
        rig.check()


@in_loop
async def test_a_front_that_returns_counts_on_every_slab(tmp_path: Path) -> None:
    async with running(idle_rig(tmp_path)) as rig:
        context = await rig.alloc()
        told = (await rig.infer(context, prompt_of(3, 20), 4)).tokens
        await fall_idle(rig)
        await rig.die_and_return(keeps_worker=True)
        assert (await rig.infer(context, (), 4)).tokens == oracle([*prompt_of(3, 20), *told], 4)
        rig.check()
