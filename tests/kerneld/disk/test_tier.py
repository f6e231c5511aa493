"""The disk tier in a whole daemon: what left memory comes back from the page file, and nobody's tokens change by it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from kerneld.calls import ContextState, PageCounts
from kerneld.disk.events import DiskPageCorrupt, DiskTierFailed, PagesFetched, PagesSpilled
from kerneld.disk.tier import DiskTier
from kerneld.errors import DiskFull, WrongState
from kerneld.events import Event
from tests.kerneld.rig import ANN, Rig, Sizes, in_loop, oracle, prompt_of, running

# Device: 64 pages, host: 32, disk: 256. A context of 100 tokens has 25.
SMALL = Sizes(device_slabs=5, host_slabs=4, disk_slabs=32)


class Tape:
    """Events of a rig, from the moment that it is made."""

    def __init__(self, rig: Rig) -> None:
        self.events: list[Event] = []
        rig.machine.events.subscribe(self.events.append)

    def pages(self, kind: type[PagesSpilled] | type[PagesFetched]) -> int:
        """How many pages events of a kind tell of."""
        return sum(event.num_pages for event in self.events if isinstance(event, kind))

    def count(self, kind: type[Event]) -> int:
        """How many events of a kind there are."""
        return sum(isinstance(event, kind) for event in self.events)


def tier_of(rig: Rig) -> DiskTier:
    tier = rig.machine.devices.first.disk_tier
    assert tier is not None
    return tier


async def settled(rig: Rig) -> None:
    """Let plans and transfers end, and all that follows from them."""
    for _ in range(3):
        await rig.settle()
        tier_of(rig).reclaimer.now()
        await rig.until(lambda: tier_of(rig).mover.is_idle)


@in_loop
async def test_contexts_of_many_times_the_memory_go_on_where_they_were(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        tape, said = Tape(rig), {}
        contexts = [await rig.alloc() for _ in range(8)]
        for idx, context in enumerate(contexts):
            await rig.infer(context, prompt_of(idx, 96), 4)
            await settled(rig)
        for context in contexts:
            before = rig.tokens(context)
            said[context] = (await rig.infer(context, max_tokens=4)).tokens, oracle(before, 4)
            await settled(rig)

        assert [got for got, _expected in said.values()] == [expected for _got, expected in said.values()]
        assert tape.pages(PagesSpilled) > 0
        assert tape.pages(PagesFetched) > 0
        assert (tape.count(DiskPageCorrupt), tape.count(DiskTierFailed)) == (0, 0)


# ---------------------------------------------------------------------------------------------------------------------- suspend to disk


@in_loop
async def test_a_context_that_is_suspended_to_disk_is_out_wholly_and_comes_back(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        tape, context = Tape(rig), await rig.alloc()
        await rig.infer(context, prompt_of(1, 98), 4)

        out = await rig.kernel.suspend_to_disk(ANN, context)
        before = rig.tokens(context)
        await rig.kernel.resume(ANN, context)
        output = await rig.infer(context, max_tokens=4)

        assert (out.state, out.pages) == (ContextState.SUSPENDED, PageCounts(disk=26))
        assert output.tokens == oracle(before, 4)
        assert output.finished is not None
        assert (output.finished.usage.pages_restored, output.finished.usage.pages_recomputed) == (26, 0)
        assert tape.pages(PagesFetched) == 26


@in_loop
async def test_a_suspended_context_on_disk_survives_the_daemon(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 98), 4)
        await rig.kernel.suspend_to_disk(ANN, context)

        await rig.die_and_return()
        await rig.load()
        found = rig.stat(context)
        before = rig.tokens(context)
        await rig.kernel.resume(ANN, context)
        output = await rig.infer(context, max_tokens=4)

        assert (found.state, found.pages) == (ContextState.SUSPENDED, PageCounts(disk=26))
        assert output.tokens == oracle(before, 4)
        assert output.finished is not None
        assert (output.finished.usage.pages_restored, output.finished.usage.pages_recomputed) == (26, 0)


@in_loop
async def test_without_a_disk_tier_there_is_nothing_to_suspend_to(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()

        with pytest.raises(WrongState, match="page_file_bytes"):
            await rig.kernel.suspend_to_disk(ANN, context)

        assert rig.stat(context).state is ContextState.IDLE


@in_loop
async def test_a_disk_tier_that_is_full_says_what_is_kept_in_memory(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, replace(SMALL, disk_slabs=1))) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 98), 4)

        with pytest.raises(DiskFull, match="still in memory") as refusal:
            await rig.kernel.suspend_to_disk(ANN, context)
        before = rig.tokens(context)
        await rig.kernel.resume(ANN, context)

        assert refusal.value.facts["pages_on_disk"] == "8"
        assert (await rig.infer(context, max_tokens=4)).tokens == oracle(before, 4)


# ---------------------------------------------------------------------------------------------------------------------- bursts


async def touched_at_random(folder: Path, host_clean: float) -> tuple[int, Tape]:
    """Ten contexts of 90 tokens touched in random order, three at a time; returns how many pages were recomputed, and what was told.

    Device: 4 of them, host: 4, disk: all. The mover gets its turns after every three.
    """
    rig, draw, num_recomputed = Rig(folder, Sizes(device_slabs=6, host_slabs=12, disk_slabs=64)), random.Random(7), 0
    rig.memory["host_clean"] = host_clean
    async with running(rig):
        tape, contexts = Tape(rig), [await rig.alloc() for _ in range(10)]
        for idx, context in enumerate(contexts):
            await rig.infer(context, prompt_of(idx, 90), 2)
            await settled(rig)
        for _ in range(20):
            three = draw.sample(contexts, 3)
            before = [rig.tokens(context) for context in three]
            outputs = await asyncio.gather(*(rig.infer(context, max_tokens=1) for context in three))
            assert [output.tokens for output in outputs] == [oracle(tokens, 1) for tokens in before]
            num_recomputed += sum(output.finished.usage.pages_recomputed for output in outputs if output.finished is not None)
            await settled(rig)
        return num_recomputed, tape


@in_loop
async def test_contexts_that_are_touched_at_random_recompute_nothing_when_the_disk_has_room_for_all(tmp_path: Path) -> None:
    num_recomputed, tape = await touched_at_random(tmp_path, 0.5)

    assert num_recomputed == 0
    assert tape.pages(PagesSpilled) > 0
    assert tape.pages(PagesFetched) > 0


@in_loop
async def test_a_burst_is_larger_than_the_free_frames_alone(tmp_path: Path) -> None:
    num_recomputed, _tape = await touched_at_random(tmp_path, 0.0)

    assert num_recomputed > 0
