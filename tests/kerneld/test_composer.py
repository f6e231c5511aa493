"""Composing plans: who sits, who gives way, and how often the pager is asked in vain."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from kerneld.calls import Caller, LimitMode, Limits, Priority
from kerneld.events import Event, RequestAdmitted, RequestPreempted
from tests.kerneld.rig import ADMIN, ANN, BOB, Output, Rig, Sizes, in_loop, oracle, prompt_of, running


class Watch:
    """What a rig's requests went through."""

    def __init__(self, rig: Rig) -> None:
        self._requests = rig.machine.requests
        self.seated: list[str] = []  # contexts
        self.causes: Counter[str] = Counter()
        rig.machine.events.subscribe(self.heard)

    def heard(self, event: Event) -> None:
        if isinstance(event, RequestAdmitted):
            self.seated.append(self._requests[event.request].context.id)
        if isinstance(event, RequestPreempted):
            self.causes[event.cause] += 1


async def ask_at_once(rig: Rig, num_requests: int, num_input: int, num_output: int) -> list[Output]:
    """Two tenants ask for as much, all at once; every answer is right."""
    callers = [(ANN, BOB)[number % 2] for number in range(num_requests)]
    ids = [await rig.alloc(caller) for caller in callers]
    begun = [
        rig.begin(context, prompt_of(seed, num_input), num_output, caller=caller)
        for seed, (context, caller) in enumerate(zip(ids, callers, strict=True))
    ]
    outputs = await asyncio.gather(*begun)
    for seed, output in enumerate(outputs):
        assert output.tokens == oracle(prompt_of(seed, num_input), num_output)
    return outputs


@pytest.mark.parametrize("growth_share", [1.0, 0.0])
@pytest.mark.parametrize(("num_input", "num_output", "slabs"), [(30, 30, 16), (30, 60, 24), (62, 10, 19), (30, 60, 13)])
@in_loop
async def test_plans_are_hardly_ever_tried_in_vain(
    tmp_path: Path, num_input: int, num_output: int, slabs: int, growth_share: float
) -> None:
    sizes = Sizes(device_slabs=slabs, host_slabs=512, max_rows=32)  # half of what all of them need, or less
    rig = Rig(tmp_path, sizes, growth_share=growth_share)
    async with running(rig):
        assert rig.worker is not None
        composer = rig.machine.devices.first.dispatcher.composer
        attempts, plans = composer.num_attempts, len(rig.worker.plans)

        await ask_at_once(rig, 32, num_input, num_output)

        assert composer.num_attempts - attempts <= 1.2 * (len(rig.worker.plans) - plans)


@pytest.mark.parametrize("priority", [Priority.BATCH, Priority.IDLE])
@in_loop
async def test_where_all_rows_are_taken_a_laxer_class_gives_its_row_up(tmp_path: Path, priority: Priority) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=2))) as rig:
        watch = Watch(rig)
        lax = [await rig.alloc(ANN, priority=priority) for _ in range(2)]
        hogs = [rig.begin(context, prompt_of(seed, 9), 900) for seed, context in enumerate(lax)]
        await rig.until(lambda: all(len(rig.tokens(context)) > 9 + 64 for context in lax))

        output = await rig.infer(await rig.alloc(BOB), prompt_of(7, 9), 5, caller=BOB)

        assert output.tokens == oracle(prompt_of(7, 9), 5)
        assert all(len(rig.tokens(context)) < 9 + 900 for context in lax)
        assert [(await hog).tokens for hog in hogs] == [oracle(prompt_of(seed, 9), 900) for seed in range(2)]
        assert watch.causes == {"rows": 1}
        assert "rows" in rig.machine.scheduler.system_us


@in_loop
async def test_the_one_that_gave_its_row_up_pays_nothing_for_it(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        watch, scheduler = Watch(rig), rig.machine.scheduler
        scheduler.charging.surcharge = lambda _request, _cost: 0  # what the load took on this machine
        lax = await rig.alloc(ANN, priority=Priority.IDLE)
        hog = rig.begin(lax, prompt_of(1, 9), 300)
        await rig.until(lambda: len(rig.tokens(lax)) > 9 + 64)
        await rig.infer(await rig.alloc(BOB), prompt_of(2, 9), 5, caller=BOB)
        await hog

        assert watch.causes["rows"] == 1
        assert scheduler.shares.service("lab/ann") == 9 * 10 + 300 * 20


@in_loop
async def test_equal_tenants_of_one_class_do_not_take_rows_from_each_other(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=4))) as rig:
        watch = Watch(rig)

        await ask_at_once(rig, 60, 9, 90)

        assert watch.causes == {}


@in_loop
async def test_a_large_winner_that_does_not_fit_is_passed_by_nobody(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=5, host_slabs=64))) as rig:  # 64 pages for KV
        watch = Watch(rig)
        holder = await rig.alloc(BOB)
        held = rig.begin(holder, prompt_of(1, 40), 100, caller=BOB)
        await rig.until(lambda: len(rig.tokens(holder)) > 50)
        large, large_task = await begin(rig, ANN, prompt_of(2, 190), 8)
        small = [await begin(rig, caller, prompt_of(3 + seed, 5), 3) for seed, caller in enumerate((BOB, ANN, BOB))]

        await asyncio.gather(held, large_task, *(task for _context, task in small))

        assert watch.seated[:2] == [holder, large]
        assert len(watch.seated) == 5


@in_loop
async def test_a_deferred_one_that_finds_no_room_stops_nobody(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=5, host_slabs=64))) as rig:  # 64 pages for KV
        watch = Watch(rig)
        limits = Limits(requests_per_minute=1, modes={"requests_per_minute": LimitMode.SOFT})
        await rig.kernel.set_tenant(ADMIN, "lab/ann", None, limits)
        await rig.infer(await rig.alloc(ANN), prompt_of(0, 5), 3)
        holder, held = await begin(rig, BOB, prompt_of(1, 40), 120)
        await rig.until(lambda: len(rig.tokens(holder)) > 50)
        large, large_task = await begin(rig, ANN, prompt_of(2, 190), 8)
        assert rig.machine.scheduler.num_deferred == 1
        small, small_task = await begin(rig, BOB, prompt_of(3, 5), 3)

        await small_task
        assert not held.done()
        await asyncio.gather(held, large_task)

        assert watch.seated[1:] == [holder, small, large]


async def begin(rig: Rig, caller: Caller, prompt: tuple[int, ...], num_output: int) -> tuple[str, asyncio.Task[Output]]:
    """Begin a request, and return its context once it waits or runs."""
    num_requests = len(rig.machine.requests)
    context = await rig.alloc(caller)
    task = rig.begin(context, prompt, num_output, caller=caller)
    await rig.until(lambda: len(rig.machine.requests) > num_requests)
    return context, task


@in_loop
async def test_newcomers_that_were_turned_back_are_charged_once(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=4, host_slabs=64), growth_share=0.0)) as rig:
        scheduler = rig.machine.scheduler
        scheduler.charging.surcharge = lambda _request, _cost: 0  # what the load took on this machine

        await ask_at_once(rig, 10, 30, 60)

        assert scheduler.shares.service("lab") == 10 * (30 * 10 + 60 * 20)


@pytest.mark.parametrize(("locality_lag_s", "order"), [(0.05, ["busy", "cached", "cold"]), (0.0, ["busy", "cold", "cached"])])
@in_loop
async def test_of_one_tenants_requests_the_one_whose_prefix_is_known_goes_first(
    tmp_path: Path, locality_lag_s: float, order: list[str]
) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1), locality_lag_s=locality_lag_s)) as rig:
        assert rig.worker is not None
        await rig.infer(await rig.alloc(), prompt_of(1, 200), 3)
        await rig.settle()
        watch = Watch(rig)
        rig.worker.hold()
        names = {}
        for name, prompt in (("busy", prompt_of(2, 9)), ("cold", prompt_of(3, 200)), ("cached", prompt_of(1, 200))):
            context, task = await begin(rig, ANN, prompt, 5)
            names[context] = name
        rig.worker.release()
        await task
        await rig.until(lambda: not rig.machine.requests)

        assert [names[context] for context in watch.seated] == order
