"""What the event bus hears of pages: evictions with their owner, and copies that did not hold."""

from __future__ import annotations

from pathlib import Path

from kerneld.events import Event, PageFoundCorrupt, PagesEvicted
from tests.kerneld.rig import Rig, Sizes, in_loop, prompt_of, running

SMALL = Sizes(device_slabs=4, host_slabs=64)


async def all_twice(rig: Rig, num_contexts: int) -> tuple[list[str], list[Event]]:
    """Use more contexts than there is room for, twice. Returns them, and the events."""
    events: list[Event] = []
    rig.machine.events.subscribe(events.append)
    ids = [await rig.alloc() for _ in range(num_contexts)]
    for seed, context in enumerate(ids):
        await rig.infer(context, prompt_of(seed, 40), 4)
    for context in ids:
        await rig.infer(context, (), 4)
    return ids, events


@in_loop
async def test_evictions_are_told_with_whose_pages_left(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, SMALL)) as rig:
        _ids, events = await all_twice(rig, 6)

        evicted = [event for event in events if isinstance(event, PagesEvicted)]
        assert {event.tenant for event in evicted} == {"lab/ann"}
        assert sum(event.num_pages for event in evicted) > 0
        assert sum(event.num_dropped for event in evicted) == 0, "the host tier has room for all of them"


@in_loop
async def test_what_is_nowhere_after_an_eviction_is_told_as_dropped(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=4, host_slabs=0))) as rig:
        _ids, events = await all_twice(rig, 6)

        evicted = [event for event in events if isinstance(event, PagesEvicted)]
        assert sum(event.num_dropped for event in evicted) == sum(event.num_pages for event in evicted) > 0


@in_loop
async def test_a_corrupt_copy_is_told_with_the_context_that_wanted_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, SMALL)
    rig.options = {"corrupt_host_copy": "5"}
    async with running(rig):
        ids, events = await all_twice(rig, 6)

        corrupt = [event for event in events if isinstance(event, PageFoundCorrupt)]
        assert len(corrupt) == 1
        assert corrupt[0].context in ids
        assert corrupt[0].tenant == "lab/ann"
        assert 0 <= corrupt[0].page_idx < 11
