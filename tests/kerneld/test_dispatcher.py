"""The loop of a device, end to end over the fake driver: what comes out equals the oracle, whatever is in flight beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drivers.contract import Sampling
from drivers.fake_model import FakeModel
from kerneld.calls import Durability, Limits, ModelState, RegisterArgs
from kerneld.errors import WrongState
from memory.errors import NeverFits
from memory.page import Tier
from tests.kerneld.local_worker import Script
from tests.kerneld.rig import ADMIN, ANN, BOB, GRANULE, GREEDY, SLAB, Rig, Sizes, in_loop, oracle, prompt_of, running


@pytest.mark.parametrize("lead", [0, 1, 3])
@in_loop
async def test_many_contexts_at_once_say_what_each_says_alone(tmp_path: Path, lead: int) -> None:
    rig = Rig(tmp_path, Sizes(max_rows=8))
    rig.script = Script(lead=lead)
    async with running(rig):
        prompts = [prompt_of(seed, 3 + 11 * (seed % 9)) for seed in range(24)]
        lengths = [1 + 5 * (seed % 7) for seed in range(24)]
        ids = [await rig.alloc() for _ in prompts]
        outputs = await asyncio.gather(*map(rig.begin, ids, prompts, lengths))
        for prompt, length, output in zip(prompts, lengths, outputs, strict=True):
            assert output.tokens == oracle(prompt, length)
            assert output.reason == "length"


@in_loop
async def test_quanta_grow_when_nobody_waits_and_are_cut_by_an_arrival(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        first, second = await rig.alloc(), await rig.alloc()
        running_task = rig.begin(first, prompt_of(1, 5), 200)
        assert rig.worker is not None
        worker = rig.worker
        await rig.until(lambda: bool(worker.plans) and worker.plans[-1].num_steps == 8)
        late = await rig.infer(second, prompt_of(2, 5), 3)
        assert worker.num_cuts >= 1
        assert late.tokens == oracle(prompt_of(2, 5), 3)
        assert (await running_task).tokens == oracle(prompt_of(1, 5), 200)


@in_loop
async def test_who_can_be_seated_does_not_wait_for_a_plan_that_has_not_begun(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=2))) as rig:
        assert rig.worker is not None
        worker = rig.worker
        hog = [rig.begin(await rig.alloc(), prompt_of(seed, 5), 100) for seed in range(4)]
        late = await rig.alloc(BOB)
        await rig.until(lambda: worker.num_steps >= 12)
        worker.hold()
        await rig.until(lambda: worker.plans[-1].seq >= worker.plans[-2].seq and len(rig.machine.devices.first.dispatcher._flights) == 2)
        num_cuts = worker.num_cuts
        output = rig.begin(late, prompt_of(9, 5), 3, caller=BOB)
        await rig.until(lambda: worker.num_cuts > num_cuts)
        worker.release()
        assert (await output).tokens == oracle(prompt_of(9, 5), 3)
        assert [(await task).tokens for task in hog] == [oracle(prompt_of(seed, 5), 100) for seed in range(4)]


@in_loop
async def test_a_drawn_continuation_depends_on_seed_and_position_alone(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        sampling = Sampling(temperature=0.8, seed=77)
        context = await rig.alloc()
        first = await rig.infer(context, prompt_of(3, 9), 11, sampling=sampling)
        second = await rig.infer(context, (), 13, sampling=sampling)
        assert first.tokens + second.tokens == oracle(prompt_of(3, 9), 24, sampling)


@in_loop
async def test_turns_of_one_context_go_on_from_what_was_generated(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        history: list[int] = []
        for turn in range(6):
            prompt = prompt_of(turn, 1 + turn * 3)
            output = await rig.infer(context, prompt, 7)
            assert output.tokens == oracle([*history, *prompt], 7)
            history += [*prompt, *output.tokens]
        assert rig.tokens(context) == history


@in_loop
async def test_pages_go_to_the_host_tier_and_back_when_the_device_is_small(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=5, host_slabs=64))) as rig:  # 64 pages for KV
        prompts = {await rig.alloc(): prompt_of(seed, 60) for seed in range(8)}  # 16 pages each, and more
        history = {context: list(prompt) for context, prompt in prompts.items()}
        restored = 0
        for turn in range(3):
            for context, prompt in prompts.items():
                output = await rig.infer(context, prompt if turn == 0 else prompt_of(turn, 2), 4)
                history[context] += [] if turn == 0 else prompt_of(turn, 2)
                assert output.tokens == oracle(history[context], 4)
                history[context] += output.tokens
                assert output.finished is not None
                restored += output.finished.usage.pages_restored
            rig.check()
        assert restored > 0


@in_loop
async def test_more_running_requests_than_frames_take_turns_and_all_end_right(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=4, host_slabs=64))) as rig:  # 48 pages for KV
        ids = [await rig.alloc() for _ in range(10)]
        outputs = await asyncio.gather(*[rig.begin(context, prompt_of(seed, 30), 60) for seed, context in enumerate(ids)])
        for seed, output in enumerate(outputs):
            assert output.tokens == oracle(prompt_of(seed, 30), 60)


@in_loop
async def test_without_a_host_tier_what_is_evicted_is_computed_again(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=4, host_slabs=0))) as rig:
        ids = [await rig.alloc() for _ in range(6)]
        outputs = await asyncio.gather(*[rig.begin(context, prompt_of(seed, 30), 60) for seed, context in enumerate(ids)])
        for seed, output in enumerate(outputs):
            assert output.tokens == oracle(prompt_of(seed, 30), 60)
        again = [await rig.infer(context, (), 5, sampling=GREEDY) for context in ids]
        for seed, (output, more) in enumerate(zip(outputs, again, strict=True)):
            assert more.tokens == oracle([*prompt_of(seed, 30), *output.tokens], 5)


@in_loop
async def test_weights_make_room_beside_running_rows(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=9, host_slabs=64))
    rig.add_model("wide", FakeModel(weights_bytes=3 * SLAB, seed=1))
    async with running(rig):
        idle = [await rig.alloc() for _ in range(5)]
        for seed, context in enumerate(idle):
            await rig.infer(context, prompt_of(seed, 62), 2)
        busy = await rig.alloc()
        talk = rig.begin(busy, prompt_of(50, 20), 80)
        await rig.until(lambda: len(rig.tokens(busy)) > 30)
        info = await rig.load("wide")
        assert info.state is ModelState.RESIDENT
        assert (await talk).tokens == oracle(prompt_of(50, 20), 80)
        for seed, context in enumerate(idle):
            told = oracle(prompt_of(seed, 62), 2)
            assert (await rig.infer(context, (), 3)).tokens == oracle([*prompt_of(seed, 62), *told], 3)


@in_loop
async def test_weights_that_find_no_room_say_who_holds_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=4))
    rig.add_model("huge", FakeModel(weights_bytes=4 * SLAB, seed=1))
    async with running(rig):
        rig.machine.devices.first.models.get("m").is_pinned = True
        with pytest.raises(WrongState, match="models \\(4 KiB\\)"):
            await rig.load("huge")
        assert (await rig.infer(await rig.alloc(), prompt_of(1, 4), 3)).tokens == oracle(prompt_of(1, 4), 3)


@in_loop
async def test_room_is_asked_for_again_when_its_plan_was_void(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=7, host_slabs=64))
    rig.options = {"corrupt_host_copy": "2"}
    rig.add_model("wide", FakeModel(weights_bytes=2 * SLAB, seed=1))
    async with running(rig):
        ids = [await rig.alloc() for _ in range(8)]
        for seed, context in enumerate(ids):
            await rig.infer(context, prompt_of(seed, 62), 2)
        talk = rig.begin(ids[0], (), 6)
        info = await rig.load("wide")
        assert info.state is ModelState.RESIDENT
        output = await talk
        assert output.tokens == oracle([*prompt_of(0, 62), *oracle(prompt_of(0, 62), 2)], 6)
        assert output.finished is not None
        assert output.finished.usage.pages_recomputed > 0


@in_loop
async def test_a_request_that_never_fits_is_refused_with_the_numbers(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=3))) as rig:
        context = await rig.alloc()
        with pytest.raises(NeverFits) as refusal:
            await rig.infer(context, prompt_of(1, 120), 20)
        assert refusal.value.needed_bytes > refusal.value.limit_bytes
        assert rig.tokens(context) == []
        assert (await rig.infer(context, prompt_of(1, 60), 20)).tokens == oracle(prompt_of(1, 60), 20)


@in_loop
async def test_a_request_accepted_before_its_model_was_known_ends_when_it_cannot_fit(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=3))
    async with running(rig, loads=False):
        await rig.kernel.register_model(ADMIN, RegisterArgs("m", str(tmp_path / "models" / "m")))
        big, small = await rig.alloc(), await rig.alloc()
        first, second = rig.begin(big, prompt_of(1, 120), 20), rig.begin(small, prompt_of(2, 8), 5)
        assert (await first).reason == "error"
        assert "are needed" in (await first).detail
        assert (await second).tokens == oracle(prompt_of(2, 8), 5)


@in_loop
async def test_a_tenant_at_its_memory_limit_stops_nobody_else(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=64))) as rig:
        await rig.kernel.set_tenant(ADMIN, "lab/ann", None, Limits(device_bytes=20 * GRANULE))
        hers = [await rig.alloc(ANN) for _ in range(4)]
        his = [await rig.alloc(BOB) for _ in range(4)]
        tasks = [rig.begin(context, prompt_of(seed, 30), 30) for seed, context in enumerate(hers)]
        tasks += [rig.begin(context, prompt_of(seed + 4, 30), 30, caller=BOB) for seed, context in enumerate(his)]
        for seed, output in enumerate(await asyncio.gather(*tasks)):
            assert output.tokens == oracle(prompt_of(seed, 30), 30)
        assert rig.machine.devices.first.pager.ledger.used("lab/ann", Tier.DEVICE) <= 20 * GRANULE


@in_loop
async def test_pages_that_come_back_are_counted_once_however_often_they_had_to_wait(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(device_slabs=4, host_slabs=64))) as rig:
        first, second, third = [await rig.alloc() for _ in range(3)]
        await rig.infer(first, prompt_of(1, 100), 2)
        await rig.infer(second, prompt_of(2, 100), 60)
        long = rig.begin(third, prompt_of(3, 100), 60)
        await rig.until(lambda: len(rig.tokens(third)) > 104)
        output = await rig.infer(first, (), 2)
        assert output.finished is not None
        usage = output.finished.usage
        assert usage.pages_restored + usage.pages_recomputed <= 26
        assert (await long).tokens == oracle(prompt_of(3, 100), 60)


# ------------------------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 13, 21, 34])
@in_loop
async def test_a_worker_that_dies_at_any_step_costs_nobody_a_token(tmp_path: Path, step: int) -> None:
    rig = Rig(tmp_path, Sizes(max_rows=4))
    rig.scripts = [Script(die_at_step=step, lead=step % 3), Script(die_at_step=step + 2)]
    async with running(rig):
        ids = [await rig.alloc(durability=kind) for kind in list(Durability) * 2]
        outputs = await asyncio.gather(*[rig.begin(context, prompt_of(seed, 5 + 20 * seed), 25) for seed, context in enumerate(ids)])
        for seed, output in enumerate(outputs):
            assert output.tokens == oracle(prompt_of(seed, 5 + 20 * seed), 25)
        assert len(rig.workers) in (2, 3)


@pytest.mark.parametrize("plan", [1, 2, 4, 7])
@in_loop
async def test_a_worker_that_dies_between_page_moves_and_steps_is_survived(tmp_path: Path, plan: int) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=4, host_slabs=16))
    rig.scripts = [Script(die_after_apply=plan)]
    async with running(rig):
        ids = [await rig.alloc() for _ in range(6)]
        outputs = await asyncio.gather(*[rig.begin(context, prompt_of(seed, 30), 20) for seed, context in enumerate(ids)])
        for seed, output in enumerate(outputs):
            assert output.tokens == oracle(prompt_of(seed, 30), 20)


@in_loop
async def test_a_worker_that_hangs_is_killed_and_recovered(tmp_path: Path) -> None:
    rig = Rig(tmp_path, step_deadline_floor_s=0.05, step_deadline_factor=1.0)
    rig.scripts = [Script(hang_at_step=4)]
    async with running(rig):
        output = await rig.infer(await rig.alloc(), prompt_of(1, 10), 20)
        assert output.tokens == oracle(prompt_of(1, 10), 20)
        assert rig.workers[0].reason.startswith("A step took longer than")


@in_loop
async def test_a_corrupt_host_copy_is_computed_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=4, host_slabs=64))
    rig.options = {"corrupt_host_copy": "5"}
    async with running(rig):
        ids = [await rig.alloc() for _ in range(6)]
        for seed, context in enumerate(ids):
            await rig.infer(context, prompt_of(seed, 40), 4)
        for seed, context in enumerate(ids):
            told = [*prompt_of(seed, 40), *oracle(prompt_of(seed, 40), 4)]
            assert (await rig.infer(context, (), 4)).tokens == oracle(told, 4)
        assert len(rig.workers) == 1


@in_loop
async def test_a_voided_plan_leaves_no_deadline_behind(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=4, host_slabs=64), step_deadline_floor_s=0.05, step_deadline_factor=1.0)
    rig.options = {"corrupt_host_copy": "5"}
    async with running(rig):
        ids = [await rig.alloc() for _ in range(6)]
        for seed, context in enumerate(ids):
            await rig.infer(context, prompt_of(seed, 40), 4)
        assert rig.worker is not None
        task = rig.begin(ids[0], (), 4)
        await rig.until(lambda: rig.machine.devices.first.dispatcher.is_idle is False)
        await task
        await asyncio.sleep(0.1)
        assert len(rig.workers) == 1


@in_loop
async def test_logits_that_are_not_finite_end_one_request_and_leave_no_kv_behind(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.options = {"nan_token": "3999"}
    async with running(rig):
        ids = [await rig.alloc() for _ in range(8)]
        prompts = [prompt_of(seed, 20) for seed in range(8)]
        prompts[3] = (*prompts[3][:10], 3999, *prompts[3][11:])
        outputs = await asyncio.gather(*[rig.begin(context, prompt, 10) for context, prompt in zip(ids, prompts, strict=True)])
        for seed, output in enumerate(outputs):
            if seed == 3:
                assert (output.reason, output.tokens) == ("error", [])
            else:
                assert output.tokens == oracle(prompts[seed], 10)
        await rig.kernel.truncate(ANN, ids[3], 9)
        assert (await rig.infer(ids[3], (), 5)).tokens == oracle(prompts[3][:9], 5)


@in_loop
async def test_a_request_that_kills_three_workers_is_quarantined_and_its_company_is_served(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.options = {"error_token": "3999"}
    async with running(rig):
        ids = [await rig.alloc() for _ in range(16)]
        prompts = [(*prompt_of(seed, 9), 3999) if seed == 7 else prompt_of(seed, 10) for seed in range(16)]
        outputs = await asyncio.gather(*[rig.begin(context, prompt, 12) for context, prompt in zip(ids, prompts, strict=True)])
        for seed, output in enumerate(outputs):
            if seed == 7:
                assert output.reason == "error"
                assert output.detail.startswith("Quarantined")
            else:
                assert output.tokens == oracle(prompts[seed], 12)
        assert len(rig.workers) == 4
