"""Many models registered, more than fit: they leave for each other, come back from the host tier, and nobody's answer changes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drivers.fake_model import FakeModel
from kerneld.calls import ModelState, RegisterArgs
from kerneld.errors import Conflict, NotFound, WrongState
from kerneld.models import Model
from memory.page import Tier
from tests.kerneld.local_worker import LocalWorker
from tests.kerneld.rig import ADMIN, ANN, SLAB, Output, Rig, Sizes, in_loop, oracle, prompt_of, running

SPEECH = {name: FakeModel(weights_bytes=4 * SLAB, num_layers=4, seed=seed) for seed, name in enumerate(("ant", "bee", "cow"), start=1)}


class Clock:
    """Time that only moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rig_for(tmp_path: Path, clock: Clock | None = None, *, device_slabs: int = 6, host_slabs: int = 64) -> Rig:
    """A rig on whose device one of the three models fits at a time, with room for pages."""
    rig = Rig(tmp_path, Sizes(device_slabs=device_slabs, host_slabs=host_slabs), **({} if clock is None else {"clock": clock}))
    rig.memory = {"min_residency_s": 0.0, "max_model_wait_s": 0.0}
    for name, language in SPEECH.items():
        rig.add_model(name, language)
    return rig


async def register(rig: Rig, *names: str) -> None:
    for name in names:
        await rig.kernel.register_model(ADMIN, RegisterArgs(name, str(rig.folder / "models" / name)))


def model(rig: Rig, name: str) -> Model:
    return rig.machine.devices.first.models.get(name)


def states(rig: Rig) -> dict[str, ModelState]:
    return {name: model(rig, name).state for name in SPEECH}


def host_weights(rig: Rig) -> int:
    return rig.machine.devices.first.pager.weights[Tier.HOST].num_slabs


async def events(rig: Rig, name: str) -> list[dict[str, str]]:
    return [dict(record.facts) async for record in rig.machine.events.follow(follow=False) if record.name == name]


async def ask(rig: Rig, name: str, seed: int, num_tokens: int = 5) -> Output:
    output = await rig.infer(await rig.alloc(model=name), prompt_of(seed, 9), num_tokens)
    assert output.tokens == oracle(prompt_of(seed, 9), num_tokens, language=SPEECH[name])
    return output


async def held_at_work(rig: Rig) -> tuple[LocalWorker, asyncio.Task[Output]]:
    """The worker, held between two steps of a long request on ant; bee is registered and wants in."""
    await register(rig, "ant", "bee")
    worker = rig.worker
    assert worker is not None
    long = rig.begin(await rig.alloc(model="ant"), prompt_of(1, 9), 40)
    await rig.until(lambda: worker.num_steps >= 5)
    worker.hold()
    return worker, long


@in_loop
async def test_requests_on_three_models_where_one_fits_are_all_answered(tmp_path: Path) -> None:
    async with running(rig_for(tmp_path), loads=False) as rig:
        await register(rig, *SPEECH)
        for turn in range(3):
            for name in SPEECH:
                await ask(rig, name, turn)
                rig.check()
        assert sum(state is ModelState.RESIDENT for state in states(rig).values()) == 1
        assert rig.worker is not None
        assert (rig.worker.num_loads, rig.worker.num_parks) == (9, 3), "each is parked once, and loaded whenever its turn comes"


@in_loop
async def test_a_model_comes_back_from_the_host_tier(tmp_path: Path) -> None:
    async with running(rig_for(tmp_path), loads=False) as rig:
        await register(rig, "ant", "bee")
        for name in ("ant", "bee", "ant"):
            await ask(rig, name, 1)
        loads = await events(rig, "ModelLoaded")
        assert [(load["model"], load["host_bytes"]) for load in loads] == [("ant", "0"), ("bee", "0"), ("ant", str(4 * SLAB))]
        assert [event["is_parked"] for event in await events(rig, "ModelEvicted")] == ["True", "True"]
        assert host_weights(rig) == 8


@in_loop
async def test_an_image_that_does_not_hold_is_counted_and_read_from_files(tmp_path: Path) -> None:
    rig = rig_for(tmp_path)
    rig.options = {"corrupt_parked": "2"}
    async with running(rig, loads=False):
        await register(rig, "ant", "bee")
        for name in ("ant", "bee", "ant", "bee", "ant"):
            await ask(rig, name, 1)
        counts = [load["num_corrupt"] for load in await events(rig, "ModelLoaded") if load["model"] == "ant"]
        assert counts == ["0", "1", "0"], "what did not hold is not kept: it was parked anew"


@in_loop
async def test_an_unloaded_model_waits_in_the_host_tier_and_a_removed_one_leaves_nothing(tmp_path: Path) -> None:
    async with running(rig_for(tmp_path), loads=False) as rig:
        await rig.load("ant")
        await rig.kernel.unload_model(ADMIN, "ant")
        assert (model(rig, "ant").state, host_weights(rig)) == (ModelState.REGISTERED, 4)
        await rig.kernel.remove_model(ADMIN, "ant")
        assert host_weights(rig) == 0
        assert rig.machine.devices.first.pager.weights[Tier.DEVICE].num_slabs == 0
        await rig.load("bee")
        await rig.kernel.remove_model(ADMIN, "bee")
        assert rig.worker is not None
        assert rig.worker.num_parks == 1, "nobody parks what is being removed"


@in_loop
async def test_a_load_of_a_model_that_is_being_removed_ends_with_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    async with running(rig_for(tmp_path), loads=False) as rig:
        assert rig.worker is not None
        gate = rig.worker.load_gate = asyncio.Event()
        loading = asyncio.ensure_future(rig.load("ant"))
        await rig.until(lambda: rig.worker is not None and rig.worker.num_loads == 1)
        removing = asyncio.ensure_future(rig.kernel.remove_model(ADMIN, "ant"))
        with pytest.raises(Conflict, match="removed while it was loaded"):
            await loading
        with pytest.raises(NotFound):
            await anext(aiter(rig.kernel.load_model(ADMIN, RegisterArgs("ant", ""))))
        gate.set()
        await removing
        assert rig.machine.devices.first.pager.weights[Tier.DEVICE].num_slabs == host_weights(rig) == 0


@in_loop
async def test_a_pinned_model_stays_and_who_wants_its_room_is_told_who_holds_it(tmp_path: Path) -> None:
    async with running(rig_for(tmp_path), loads=False) as rig:
        await rig.load("ant")
        await rig.kernel.pin_model(ADMIN, "ant")
        with pytest.raises(WrongState, match="Held by models \\(16 KiB\\)"):
            await rig.load("bee")
        output = await rig.infer(await rig.alloc(model="bee"), prompt_of(1, 9), 5)
        assert (output.reason, model(rig, "ant").state) == ("error", ModelState.RESIDENT)
        await rig.kernel.unpin_model(ADMIN, "ant")
        assert (await rig.load("bee")).state is ModelState.RESIDENT
        assert model(rig, "ant").state is ModelState.REGISTERED


@in_loop
async def test_a_pin_outlives_the_front(tmp_path: Path) -> None:
    rig = rig_for(tmp_path)
    async with running(rig, loads=False):
        await rig.load("ant")
        await rig.kernel.pin_model(ADMIN, "ant")
        await rig.die_and_return()
        assert rig.kernel.stat_model(ADMIN, "ant").is_pinned


@in_loop
async def test_running_rows_give_way_after_the_longest_wait_and_lose_nothing(tmp_path: Path) -> None:
    clock = Clock()
    rig = rig_for(tmp_path, clock)
    rig.memory = {"min_residency_s": 10.0, "max_model_wait_s": 30.0}
    async with running(rig, loads=False):
        worker, long = await held_at_work(rig)
        short = rig.begin(await rig.alloc(model="bee"), prompt_of(2, 9), 5)
        await rig.until(lambda: model(rig, "bee").progress.stage == "wait")
        clock.now += 29
        rig.machine.devices.first.residency.turns.look_again()
        worker.let(3)
        for _ in range(100):
            await asyncio.sleep(0)
        assert model(rig, "ant").state is ModelState.RESIDENT, "it has been in use for less than the longest wait"
        clock.now += 1
        rig.machine.devices.first.residency.turns.look_again()
        await rig.until(lambda: model(rig, "ant").state is not ModelState.RESIDENT)
        worker.release()
        assert (await short).tokens == oracle(prompt_of(2, 9), 5, language=SPEECH["bee"])
        await rig.until(lambda: model(rig, "ant").progress.stage == "wait")
        clock.now += 10
        rig.machine.devices.first.residency.turns.look_again()
        assert (await long).tokens == oracle(prompt_of(1, 9), 40, language=SPEECH["ant"])
        assert worker.num_loads == 3


@in_loop
async def test_a_load_that_waits_stops_nobody_else(tmp_path: Path) -> None:
    clock = Clock()
    rig = rig_for(tmp_path, clock)
    rig.memory = {"min_residency_s": 10.0, "max_model_wait_s": 30.0}
    async with running(rig, loads=False):
        await register(rig, "ant", "bee")
        await ask(rig, "ant", 1)
        clock.now += 1
        await ask(rig, "ant", 2)  # it is in use, and stays for its least time
        waiting = rig.begin(await rig.alloc(model="bee"), prompt_of(2, 9), 5)
        await rig.until(lambda: model(rig, "bee").progress.stage == "wait")
        for seed in range(3):
            await ask(rig, "ant", seed)
        assert not waiting.done()
        clock.now += 10
        rig.machine.devices.first.residency.turns.look_again()
        assert (await waiting).tokens == oracle(prompt_of(2, 9), 5, language=SPEECH["bee"])


@in_loop
async def test_a_load_ahead_of_need_gives_up_after_the_longest_wait(tmp_path: Path) -> None:
    clock = Clock()
    rig = rig_for(tmp_path, clock)
    rig.memory = {"min_residency_s": 10.0, "max_model_wait_s": 30.0}
    async with running(rig, loads=False):
        worker, busy = await held_at_work(rig)
        loading = asyncio.ensure_future(rig.load("bee"))
        await rig.until(lambda: model(rig, "bee").progress.stage == "wait")
        clock.now += 30
        rig.machine.devices.first.residency.turns.look_again()
        with pytest.raises(WrongState, match="models"):
            await loading
        worker.release()
        assert (await busy).tokens == oracle(prompt_of(1, 9), 40, language=SPEECH["ant"])


@in_loop
async def test_a_worker_that_dies_finds_the_images_again(tmp_path: Path) -> None:
    async with running(rig_for(tmp_path), loads=False) as rig:
        await register(rig, "ant", "bee")
        await ask(rig, "ant", 1)
        await ask(rig, "bee", 1)
        await ask(rig, "ant", 2)
        assert rig.worker is not None
        rig.worker.die()
        await rig.until(lambda: model(rig, "ant").state is ModelState.RESIDENT and len(rig.workers) == 2)
        assert (await events(rig, "ModelLoaded"))[-1]["host_bytes"] == str(4 * SLAB)
        await ask(rig, "ant", 3)


@in_loop
async def test_a_front_that_returns_takes_no_image_for_a_page(tmp_path: Path) -> None:
    rig = rig_for(tmp_path)
    async with running(rig, loads=False):
        await register(rig, "ant", "bee")
        context = await rig.alloc(model="ant")
        await rig.infer(context, prompt_of(1, 60), 5)
        past = rig.tokens(context)
        await ask(rig, "bee", 1)
        await rig.settle()
        await rig.die_and_return(keeps_worker=True)
        assert host_weights(rig) == 0, "images are not taken over"
        assert (await rig.infer(context, (), 5)).tokens == oracle(past, 5, language=SPEECH["ant"])
        rig.check()


@in_loop
async def test_images_leave_room_for_pages_and_the_coldest_goes_first(tmp_path: Path) -> None:
    rig = rig_for(tmp_path, host_slabs=16)
    async with running(rig, loads=False):
        await register(rig, *SPEECH)
        for name in (*SPEECH, *SPEECH):
            await ask(rig, name, 1)
        assert host_weights(rig) == 8, "half of the host tier"
        rig.check()


@in_loop
async def test_where_pages_fill_the_host_tier_images_of_settled_models_go(tmp_path: Path) -> None:
    clock = Clock()
    rig = rig_for(tmp_path, clock, host_slabs=9)
    async with running(rig, loads=False):
        for name in ("ant", "bee", "ant"):
            await rig.load(name)
        assert (model(rig, "ant").image is not None, host_weights(rig)) == (True, 4)
        contexts = [await rig.alloc(model="ant") for _ in range(4)]
        for seed, context in enumerate(contexts):
            await rig.infer(context, prompt_of(seed, 60), 5)
        await rig.settle()
        assert rig.machine.devices.first.pager.weights[Tier.HOST].num_free == 0
        rig.machine.devices.first.residency.parking.relieve(clock.now)
        assert host_weights(rig) == 4
        clock.now += 60
        rig.machine.devices.first.residency.parking.relieve(clock.now)
        assert host_weights(rig) == 0
        rig.check()


@in_loop
async def test_without_a_host_tier_models_are_read_again(tmp_path: Path) -> None:
    async with running(rig_for(tmp_path, host_slabs=0), loads=False) as rig:
        await register(rig, "ant", "bee")
        for name in ("ant", "bee", "ant"):
            await ask(rig, name, 1)
        assert [load["host_bytes"] for load in await events(rig, "ModelLoaded")] == ["0", "0", "0"]


@in_loop
async def test_loads_wanted_after_a_restart_do_not_push_each_other_out(tmp_path: Path) -> None:
    rig = rig_for(tmp_path)
    async with running(rig, loads=False):
        for name in SPEECH:
            await rig.load(name)
        await rig.kernel.pin_model(ADMIN, "bee")
        await rig.die_and_return()
        await rig.until(lambda: ModelState.LOADING not in states(rig).values())
        assert rig.worker is not None
        assert rig.worker.num_loads == 1
        assert {name for name, state in states(rig).items() if state is ModelState.RESIDENT} == {"bee"}, "pinned ones come first"
        await rig.kernel.unpin_model(ADMIN, "bee")
        await ask(rig, "cow", 1)


@in_loop
async def test_a_model_that_was_leaving_when_the_worker_died_comes_back_for_its_requests(tmp_path: Path) -> None:
    clock = Clock()
    rig = rig_for(tmp_path, clock)
    rig.memory = {"min_residency_s": 10.0, "max_model_wait_s": 30.0}
    async with running(rig, loads=False):
        worker, long = await held_at_work(rig)
        short = rig.begin(await rig.alloc(model="bee"), prompt_of(2, 9), 5)
        await rig.until(lambda: model(rig, "bee").progress.stage == "wait")
        clock.now += 30
        rig.machine.devices.first.residency.turns.look_again()
        await rig.until(lambda: model(rig, "ant").state is not ModelState.RESIDENT)
        worker.die()

        def are_answered() -> bool:
            clock.now += 1
            rig.machine.devices.first.residency.turns.look_again()
            return short.done() and long.done()

        await rig.until(are_answered)
        assert (await short).tokens == oracle(prompt_of(2, 9), 5, language=SPEECH["bee"])
        assert (await long).tokens == oracle(prompt_of(1, 9), 40, language=SPEECH["ant"])


@in_loop
async def test_a_model_that_was_leaving_for_one_that_is_unloaded_comes_back_for_its_requests(tmp_path: Path) -> None:
    clock = Clock()
    rig = rig_for(tmp_path, clock)
    rig.memory = {"min_residency_s": 10.0, "max_model_wait_s": 30.0}
    async with running(rig, loads=False):
        worker, long = await held_at_work(rig)
        context = await rig.alloc(model="bee")
        short = rig.begin(context, prompt_of(2, 9), 5)
        await rig.until(lambda: model(rig, "bee").progress.stage == "wait")
        clock.now += 30
        rig.machine.devices.first.residency.turns.look_again()
        await rig.until(lambda: model(rig, "ant").state is not ModelState.RESIDENT)
        await rig.kernel.cancel(ANN, context)
        await short
        unloading = asyncio.ensure_future(rig.kernel.unload_model(ADMIN, "bee"))
        await asyncio.sleep(0)
        worker.release()
        await unloading
        assert (await long).tokens == oracle(prompt_of(1, 9), 40, language=SPEECH["ant"])
