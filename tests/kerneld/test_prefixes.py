"""Equal beginnings are computed once within a sharing domain, and never across two."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from kerneld.calls import Caller, ContextState
from kerneld.config import Config
from kerneld.inventory import holdings_of
from kerneld.prefixes import Prefixes
from memory.page import Tier
from tests.kerneld.local_worker import Script
from tests.kerneld.rig import ADMIN, ANN, BOB, PAGE_TOKENS, Output, Rig, Sizes, in_loop, oracle, prompt_of, running

SYSTEM = prompt_of(1, 512)
SIZES = Sizes(device_slabs=300, host_slabs=16, max_rows=32)


def computed(rig: Rig) -> int:
    """Input tokens that the worker has computed."""
    return rig.daemon.metrics.steps.prompt_tokens


def prefixes(rig: Rig) -> Prefixes:
    return rig.machine.devices.first.dispatcher.composer.prefixes


def cached(output: Output) -> int:
    assert output.finished is not None
    return output.finished.usage.cached_tokens


def suffix(number: int) -> tuple[int, ...]:
    return prompt_of(1000 + number, number % 8 + 1)


def lose_pages(rig: Rig, context_id: str) -> None:
    context = rig.machine.contexts.find(context_id)
    assert context is not None
    assert context.table is not None
    rig.machine.devices.first.pager.truncate(context.table, 0)


async def run_at_once(rig: Rig, prompts: list[tuple[int, ...]], caller: Caller = ANN) -> list[Output]:
    ids = [await rig.alloc(caller) for _prompt in prompts]
    return await asyncio.gather(*(rig.begin(each, prompt, 4, caller=caller) for each, prompt in zip(ids, prompts, strict=True)))


def check(outputs: list[Output], prompts: list[tuple[int, ...]]) -> None:
    assert [output.tokens for output in outputs] == [oracle(prompt, 4) for prompt in prompts]


@in_loop
async def test_requests_that_arrive_at_once_compute_their_common_beginning_once(tmp_path: Path) -> None:
    prompts = [SYSTEM + suffix(number) for number in range(32)]
    async with running(Rig(tmp_path, SIZES)) as rig:
        prefixes(rig).is_on = False
        check(await run_at_once(rig, prompts), prompts)
        unshared = computed(rig)
        for context in rig.machine.contexts:
            await rig.kernel.free(ANN, context.id)
        prefixes(rig).is_on = True

        outputs = await run_at_once(rig, prompts)

        check(outputs, prompts)
        assert unshared == sum(map(len, prompts))
        assert computed(rig) - unshared == len(SYSTEM) + sum(len(suffix(number)) for number in range(32))
        assert 16 * (computed(rig) - unshared) <= unshared
        assert sorted(map(cached, outputs)) == [0] + [512] * 31


@in_loop
async def test_a_context_takes_what_another_one_has_computed(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        first, second = await rig.alloc(), await rig.alloc()
        prompt = prompt_of(2, 41)
        await rig.infer(first, prompt)
        before = computed(rig)

        output = await rig.infer(second, prompt)

        assert output.tokens == oracle(prompt, 8)
        assert computed(rig) - before == 1
        assert cached(output) == 40
        assert rig.stat(second).pages.shared == 10


@in_loop
async def test_the_last_token_is_computed_though_all_pages_are_known(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        first, second = await rig.alloc(), await rig.alloc()
        prompt = prompt_of(3, 40)
        await rig.infer(first, prompt)
        before = computed(rig)

        output = await rig.infer(second, prompt)

        assert output.tokens == oracle(prompt, 8)
        assert computed(rig) - before == 1
        assert cached(output) == 39


@in_loop
async def test_nothing_is_saved_across_two_tenants(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        prompt = prompt_of(4, 64)
        await rig.infer(await rig.alloc(ANN), prompt)
        before = computed(rig)

        foreign = await rig.infer(await rig.alloc(BOB), prompt, caller=BOB)
        begun = [rig.begin(await rig.alloc(each), prompt_of(5, 64), caller=each) for each in (ANN, BOB)]
        together = await asyncio.gather(*begun)

        assert computed(rig) - before == 3 * 64
        assert [cached(output) for output in (foreign, *together)] == [0, 0, 0]
        assert all(info.pages.shared == 0 for info in (rig.stat(context.id) for context in rig.machine.contexts))


@in_loop
async def test_who_waits_for_pages_is_blocked_and_stops_nobody(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_step_tokens=16))) as rig:
        assert rig.worker is not None
        rig.worker.hold()
        ids = [await rig.alloc() for _ in range(3)]
        tasks = [rig.begin(ids[0], (*SYSTEM, 7)), rig.begin(ids[1], (*SYSTEM, 8)), rig.begin(ids[2], prompt_of(9, 4))]
        rig.worker.let(2)
        await rig.until(lambda: len(rig.machine.devices.first.dispatcher.composer.seats) == 2)

        waiter, maker = (rig.machine.requests[rig.stat(each).active_request] for each in ids[1::-1])
        assert waiter.context.state is ContextState.BLOCKED
        assert prefixes(rig).maker_of(waiter) is maker
        rig.worker.release()
        outputs = await asyncio.gather(*tasks)

        assert [output.tokens for output in outputs] == [oracle((*SYSTEM, 7), 8), oracle((*SYSTEM, 8), 8), oracle(prompt_of(9, 4), 8)]
        assert computed(rig) == 512 + 2 + 4


@pytest.mark.parametrize("turns", range(0, 36, 3))
@in_loop
async def test_when_the_one_that_computes_is_cancelled_the_next_takes_over(tmp_path: Path, turns: int) -> None:
    async with running(Rig(tmp_path, Sizes(max_step_tokens=16))) as rig:
        assert rig.worker is not None
        rig.worker.hold()
        ids = [await rig.alloc() for _ in range(4)]
        tasks = [rig.begin(each, (*SYSTEM, number)) for number, each in enumerate(ids)]
        await rig.until(lambda: len(rig.machine.devices.first.dispatcher.composer.seats) == 1)
        rig.worker.let(turns)
        for _ in range(8 * turns):
            await asyncio.sleep(0)

        await rig.kernel.cancel(ANN, ids[0])
        rig.worker.release()
        outputs = await asyncio.gather(*tasks)

        assert outputs[0].reason == "cancelled"
        assert [output.tokens for output in outputs[1:]] == [oracle((*SYSTEM, number), 8) for number in (1, 2, 3)]
        assert computed(rig) <= 2 * (512 + 16)


@in_loop
async def test_when_one_that_waits_is_cancelled_the_others_go_on(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_step_tokens=16))) as rig:
        assert rig.worker is not None
        rig.worker.hold()
        ids = [await rig.alloc() for _ in range(3)]
        tasks = [rig.begin(each, (*SYSTEM, number)) for number, each in enumerate(ids)]
        await rig.until(lambda: len(rig.machine.devices.first.dispatcher.composer.seats) == 1)

        await rig.kernel.cancel(ANN, ids[1])
        await rig.kernel.free(ANN, ids[1])
        rig.worker.release()
        outputs = await asyncio.gather(*tasks)

        assert [output.reason for output in outputs] == ["length", "cancelled", "length"]
        assert computed(rig) == 512 + 2


@pytest.mark.parametrize("step", range(1, 12, 2))
@in_loop
async def test_a_worker_that_dies_while_pages_are_in_the_making_costs_nobody_a_token(tmp_path: Path, step: int) -> None:
    rig = Rig(tmp_path, Sizes(max_step_tokens=64))
    rig.scripts = [Script(die_at_step=step)]
    prompts = [prompt_of(11, 256) + suffix(number) for number in range(8)]
    async with running(rig):
        check(await run_at_once(rig, prompts), prompts)


@in_loop
async def test_requests_that_share_take_turns_on_a_small_device(tmp_path: Path) -> None:
    prompts = [prompt_of(12 + number % 3, 48) + suffix(number) for number in range(18)]
    async with running(Rig(tmp_path, Sizes(device_slabs=2, host_slabs=1, max_rows=6))) as rig:
        check(await run_at_once(rig, prompts), prompts)


@in_loop
async def test_lost_pages_come_from_whoever_has_them(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        first, second = await rig.alloc(), await rig.alloc()
        prompt = prompt_of(13, 40)
        await rig.infer(first, prompt)
        await rig.infer(second, prompt_of(14, 40))
        third = await rig.alloc()
        await rig.infer(third, prompt_of(14, 40))
        lose_pages(rig, second)
        before = computed(rig)

        output = await rig.infer(second)

        assert output.tokens == oracle(rig.tokens(second)[:48], 8)
        assert computed(rig) - before <= PAGE_TOKENS


@in_loop
async def test_a_truncated_context_takes_the_pages_of_its_fork_again(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        first = await rig.alloc()
        prompt = prompt_of(15, 40)
        await rig.infer(first, prompt)
        second = await rig.alloc()
        await rig.infer(second, prompt_of(16, 8))
        await rig.kernel.truncate(ANN, second, 0)
        before = computed(rig)

        output = await rig.infer(second, prompt)

        assert output.tokens == oracle(prompt, 8)
        assert computed(rig) - before == 1


@in_loop
async def test_a_score_takes_known_pages_but_computes_what_it_scores(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        prompt = prompt_of(17, 40)
        await rig.infer(await rig.alloc(), prompt)
        before = computed(rig)

        score = await rig.begin_score(await rig.alloc(), prompt)

        assert len(score.tokens) == 39
        assert computed(rig) - before == 40


@in_loop
async def test_hits_are_counted(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        prompt = prompt_of(18, 40)
        for _ in range(3):
            await rig.infer(await rig.alloc(), prompt)

        page = rig.daemon.metrics.render().decode()

        assert "kerneld_prefix_cache_queries_total 120.0" in page
        assert "kerneld_prefix_cache_hits_total 78.0" in page


class CachingRig(Rig):
    """Keeps pages of freed contexts."""

    def config(self) -> Config:
        config = super().config()
        return replace(config, memory=replace(config.memory, prefix_cache_bytes=1 << 16))


@in_loop
async def test_a_freed_context_leaves_its_pages_to_the_next_of_its_tenant(tmp_path: Path) -> None:
    prompt = prompt_of(19, 40)
    async with running(CachingRig(tmp_path)) as rig:
        first = await rig.alloc()
        await rig.infer(first, prompt)
        await rig.kernel.free(ANN, first)
        before = computed(rig)

        own = await rig.infer(await rig.alloc(), prompt)
        foreign = await rig.infer(await rig.alloc(BOB), prompt, caller=BOB)

        assert own.tokens == foreign.tokens == oracle(prompt, 8)
        assert (cached(own), cached(foreign)) == (39, 0)
        assert computed(rig) - before == 1 + 40


@in_loop
async def test_what_is_cached_is_shown_and_goes_with_its_tenant(tmp_path: Path) -> None:
    async with running(CachingRig(tmp_path)) as rig:
        context = await rig.alloc(BOB)
        await rig.infer(context, prompt_of(20, 40), caller=BOB)
        await rig.kernel.free(BOB, context)
        held = [(holding.owner, holding.state) for holding in holdings_of(rig.machine.devices.first, Tier.DEVICE) if holding.kind == "kv"]

        account = next(each for each in rig.kernel.read_memory(ADMIN).accounts if (each.owner, each.tier) == ("lab/bob", "device"))
        await rig.kernel.remove_tenant(ADMIN, "lab/bob", False)
        await rig.settle()

        assert held == [("lab/bob", "cache")]
        assert account.kinds == {"kv": 0, "cache": 11 * 256}
        assert not [holding for holding in holdings_of(rig.machine.devices.first, Tier.DEVICE) if holding.kind == "kv"]
        assert rig.machine.devices.first.pager.ledger.used("lab/bob", Tier.DEVICE) == 0


@in_loop
async def test_the_cache_makes_room_for_whoever_runs(tmp_path: Path) -> None:
    async with running(CachingRig(tmp_path, Sizes(device_slabs=4, host_slabs=2))) as rig:
        for seed in range(12):
            context = await rig.alloc()
            output = await rig.infer(context, prompt_of(30 + seed, 60))
            assert output.tokens == oracle(prompt_of(30 + seed, 60), 8)
            await rig.kernel.free(ANN, context)
            rig.check()
