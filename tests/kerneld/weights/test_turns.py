"""Models as a shared resource: whose load is next, who may begin one, who pays for it, and two that share the device."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from drivers.fake_model import FakeModel
from kerneld.calls import Caller, LimitMode, Limits, ModelState, Priority, RegisterArgs
from kerneld.errors import QuotaExceeded
from kerneld.usage.amounts import SYSTEM
from tests.kerneld.rig import ADMIN, ANN, BOB, SLAB, Output, Rig, Sizes, in_loop, prompt_of, running

NAMES = ("ant", "bee", "cow")


class Clock:
    """Time that only moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Zoo:
    """A rig on whose device one of three models fits at a time, all of them registered."""

    def __init__(self, tmp_path: Path, *, device_slabs: int = 6, max_rows: int = 32, **memory: float) -> None:
        self.clock = Clock()
        self.rig = Rig(tmp_path, Sizes(device_slabs=device_slabs, host_slabs=64, max_rows=max_rows), clock=self.clock)
        self.rig.memory = {"min_residency_s": 10.0, "max_model_wait_s": 30.0, **memory}
        for seed, name in enumerate(NAMES, start=1):
            self.rig.add_model(name, FakeModel(weights_bytes=4 * SLAB, num_layers=4, seed=seed))
        self._seed = 0

    async def open(self, *others: str) -> None:
        for name in (*NAMES, *others):
            await self.rig.kernel.register_model(ADMIN, RegisterArgs(name, str(self.rig.folder / "models" / name)))

    def state(self, name: str) -> ModelState:
        return self.rig.machine.devices.first.models.get(name).state

    async def ask(self, caller: Caller, name: str, num_tokens: int = 5) -> Output:
        return await (await self.begin(caller, name, num_tokens))

    async def begin(
        self, caller: Caller, name: str, num_tokens: int = 5, priority: Priority = Priority.INTERACTIVE
    ) -> asyncio.Task[Output]:
        """A request that is there when this returns, or has been refused."""
        self._seed += 1
        rig = self.rig
        context = await rig.alloc(caller, model=name, priority=priority)
        task = rig.begin(context, prompt_of(self._seed, 9), num_tokens, caller=caller)
        await rig.until(lambda: task.done() or any(request.context.id == context for request in rig.machine.requests.values()))
        return task

    async def waits(self, name: str) -> None:
        """Return when a model waits for its turn."""
        await self.rig.until(lambda: self.rig.machine.devices.first.models.get(name).progress.stage == "wait")

    def advance(self, seconds: float) -> None:
        self.clock.now += seconds
        self.rig.machine.devices.first.residency.turns.look_again()

    async def events(self, name: str) -> list[dict[str, str]]:
        return [dict(record.facts) async for record in self.rig.machine.events.follow(follow=False) if record.name == name]

    async def loaded(self) -> list[str]:
        return [event["model"] for event in await self.events("ModelLoaded")]


# ------------------------------------------------------------------------------------------------------------------------ whose turn


@in_loop
async def test_a_load_has_the_place_of_its_best_waiter(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.ask(ANN, "ant", 30)
        zoo.clock.now += 1
        await zoo.ask(ANN, "ant", 5)
        ann = await zoo.begin(ANN, "bee", priority=Priority.BATCH)
        await zoo.waits("bee")
        bob = await zoo.begin(BOB, "cow")
        await zoo.waits("cow")
        zoo.advance(10)
        await bob
        zoo.advance(10)
        await ann
        assert await zoo.loaded() == ["ant", "cow", "bee"], "bee came first, but nobody waits for it who is in a hurry"


@in_loop
async def test_a_load_moves_up_with_the_waiter_that_comes_last(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.ask(ANN, "ant", 30)
        zoo.clock.now += 1
        await zoo.ask(ANN, "ant", 5)
        first = await zoo.begin(ANN, "bee", priority=Priority.BATCH)
        await zoo.waits("bee")
        second = await zoo.begin(ANN, "cow", priority=Priority.BATCH)
        await zoo.waits("cow")
        better = await zoo.begin(BOB, "cow")
        zoo.advance(10)
        await asyncio.gather(second, better)
        zoo.advance(10)
        await first
        assert await zoo.loaded() == ["ant", "cow", "bee"]


@in_loop
async def test_who_waited_for_the_longest_time_is_next_however_urgent_others_are(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        worker = zoo.rig.worker
        assert worker is not None
        long = await zoo.begin(ANN, "ant", 40)
        await zoo.rig.until(lambda: worker.num_steps >= 5)
        worker.hold()
        first = await zoo.begin(ANN, "bee", priority=Priority.BATCH)
        await zoo.waits("bee")
        zoo.clock.now += 29
        second = await zoo.begin(BOB, "cow")
        await zoo.waits("cow")
        zoo.advance(1)
        await zoo.rig.until(lambda: zoo.state("ant") is not ModelState.RESIDENT)
        worker.release()
        await first
        zoo.advance(40)
        await second
        zoo.advance(40)
        await long
        assert (await zoo.loaded())[:2] == ["ant", "bee"]


@in_loop
async def test_room_that_was_made_for_one_is_taken_by_no_other(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, device_slabs=11, min_residency_s=0.0)
    zoo.rig.add_model("elk", FakeModel(weights_bytes=8 * SLAB, num_layers=4, seed=9))
    async with running(zoo.rig, loads=False):
        await zoo.open("elk")
        for name in ("ant", "bee"):
            await zoo.ask(ANN, name)
        large = await zoo.begin(BOB, "elk")  # both have to leave for it, one after the other
        await zoo.rig.until(lambda: ModelState.REGISTERED in (zoo.state("ant"), zoo.state("bee")))
        left = next(name for name in ("ant", "bee") if zoo.state(name) is ModelState.REGISTERED)
        small = await zoo.begin(ANN, left)  # it would fit where it was, while the other one is still leaving
        await large
        zoo.advance(30)
        await small
        assert await zoo.loaded() == ["ant", "bee", "elk", left]


@in_loop
async def test_a_clock_that_goes_back_keeps_no_model_on_the_device(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.ask(ANN, "ant")
        zoo.clock.now += 1
        await zoo.ask(ANN, "ant")
        zoo.clock.now -= 900
        bee = await zoo.begin(BOB, "bee")
        await zoo.waits("bee")
        zoo.advance(10)
        assert (await bee).reason == "length"


@in_loop
@pytest.mark.parametrize("seed", range(5))
async def test_whatever_is_asked_for_is_answered(tmp_path: Path, seed: int) -> None:
    chance, zoo = random.Random(seed), Zoo(tmp_path, min_residency_s=1.0, max_model_wait_s=5.0)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        tasks = []
        for _ in range(25):
            caller, name = chance.choice((ANN, BOB)), chance.choice(NAMES)
            tasks.append(await zoo.begin(caller, name, chance.randint(1, 12), chance.choice((Priority.INTERACTIVE, Priority.BATCH))))
            zoo.advance(chance.random())
            for _ in range(chance.randint(0, 40)):
                await asyncio.sleep(0)
        for _ in range(200):
            zoo.advance(1)
            for _ in range(200):
                await asyncio.sleep(0)
            if all(task.done() for task in tasks):
                break
        assert [(await task).reason for task in tasks] == ["length"] * 25
        load_us = [round(float(event["seconds"]) * 1e6) for event in await zoo.events("ModelLoaded")]
        for name in NAMES:
            if zoo.state(name) is ModelState.RESIDENT:
                await zoo.rig.kernel.unload_model(ADMIN, name)
        assert sum((await charged(zoo)).values()) == sum(load_us)


# ---------------------------------------------------------------------------------------------------------------------- who may begin


def loads(per_hour: int, mode: LimitMode = LimitMode.HARD) -> Limits:
    return Limits(loads_per_hour=per_hour, modes={"loads_per_hour": mode})


@in_loop
async def test_only_the_request_that_begins_a_load_counts_one(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, min_residency_s=0.0)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.rig.kernel.set_tenant(ADMIN, "lab", None, loads(2))
        await asyncio.gather(await zoo.begin(ANN, "ant"), await zoo.begin(BOB, "ant"), await zoo.begin(ANN, "ant"))
        await zoo.ask(ANN, "bee")
        with pytest.raises(QuotaExceeded, match="Tenant 'lab' may start 2 loads of models per hour; try again in"):
            await zoo.ask(BOB, "cow")
        assert (await zoo.ask(BOB, "bee")).reason == "length", "what is there may be used"
        assert zoo.state("cow") is ModelState.REGISTERED, "a refused request starts nothing"


@in_loop
async def test_a_soft_limit_of_loads_lets_others_finish_first(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, min_residency_s=0.0, max_model_wait_s=0.0)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.rig.kernel.set_tenant(ADMIN, "lab/ann", None, loads(1, LimitMode.SOFT))
        worker = zoo.rig.worker
        assert worker is not None
        await zoo.ask(ANN, "ant")
        busy = await zoo.begin(BOB, "ant", 30)
        await zoo.rig.until(lambda: zoo.rig.machine.scheduler.running.total == 1)
        worker.hold()
        held = [await zoo.begin(ANN, "bee"), await zoo.begin(ANN, "bee")]
        for _ in range(5):
            zoo.advance(60)
            await asyncio.sleep(0)
        assert (zoo.state("ant"), zoo.state("bee")) == (ModelState.RESIDENT, ModelState.LOADING)
        worker.release()
        await asyncio.gather(busy, *held)
        assert await zoo.loaded() == ["ant", "bee"]


@in_loop
async def test_who_may_load_lets_a_load_go_that_is_held_back(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, min_residency_s=0.0, max_model_wait_s=0.0)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.rig.kernel.set_tenant(ADMIN, "lab/ann", None, loads(1, LimitMode.SOFT))
        worker = zoo.rig.worker
        assert worker is not None
        await zoo.ask(ANN, "ant")
        busy = await zoo.begin(BOB, "ant", 30)
        await zoo.rig.until(lambda: zoo.rig.machine.scheduler.running.total == 1)
        worker.hold()
        held, free = await zoo.begin(ANN, "bee"), await zoo.begin(BOB, "bee")
        zoo.advance(1)
        worker.release()
        await zoo.rig.until(lambda: zoo.state("ant") is not ModelState.RESIDENT)
        assert not busy.done()
        await asyncio.gather(held, free)
        zoo.advance(60)
        await busy


# ----------------------------------------------------------------------------------------------------------------------- who pays


async def charged(zoo: Zoo) -> dict[str, int]:
    """What everybody was charged for loads of models that are gone."""
    paid: dict[str, int] = {}
    for event in await zoo.events("LoadCharged"):
        paid[event["tenant"]] = paid.get(event["tenant"], 0) + int(event["load_us"])
    return paid


@in_loop
async def test_the_seconds_of_a_load_are_paid_by_those_that_it_served(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, min_residency_s=0.0)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.ask(ANN, "ant")
        await zoo.ask(BOB, "bee")
        await zoo.rig.kernel.unload_model(ADMIN, "bee")
        load_us = [round(float(event["seconds"]) * 1e6) for event in await zoo.events("ModelLoaded")]
        assert await charged(zoo) == {"lab/ann": load_us[0], "lab/bob": load_us[1]}


@in_loop
async def test_a_load_that_nobody_used_or_that_brings_back_what_a_dead_worker_held_is_the_systems(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, min_residency_s=0.0)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.rig.load("bee")
        await zoo.rig.kernel.unload_model(ADMIN, "bee")
        await zoo.ask(ANN, "ant")
        worker = zoo.rig.worker
        assert worker is not None
        owed_us = zoo.rig.machine.devices.first.residency.debts.owed_us("ant")
        worker.die()
        await zoo.rig.until(lambda: len(zoo.rig.workers) == 2 and zoo.state("ant") is ModelState.RESIDENT)
        assert zoo.rig.machine.devices.first.residency.debts.owed_us("ant") == owed_us
        await zoo.rig.kernel.unload_model(ADMIN, "ant")
        load_us = [round(float(event["seconds"]) * 1e6) for event in await zoo.events("ModelLoaded")]
        assert await charged(zoo) == {SYSTEM: load_us[0] + load_us[2], "lab/ann": load_us[1]}


@in_loop
async def test_what_is_owed_for_a_load_outlives_the_front_and_the_worker(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.rig.load("ant")
        zoo.rig.machine.devices.first.residency.debts.begin("ant", 10_000_000)
        await zoo.ask(ANN, "ant")
        owed_us = zoo.rig.machine.devices.first.residency.debts.owed_us("ant")
        assert 0 < owed_us < 10_000_000
        for keeps_worker in (True, False):
            await zoo.rig.die_and_return(keeps_worker=keeps_worker)
            await zoo.rig.until(lambda: zoo.state("ant") is ModelState.RESIDENT)
            assert zoo.rig.machine.devices.first.residency.debts.owed_us("ant") == owed_us
        await zoo.rig.kernel.unload_model(ADMIN, "ant")
        assert (await charged(zoo))["lab/ann"] == owed_us


# ------------------------------------------------------------------------------------------------------------------- two at a time


@in_loop
async def test_tenants_on_two_resident_models_keep_shares_by_weight(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, device_slabs=40, max_rows=2)
    async with running(zoo.rig, loads=False):
        await zoo.open()
        await zoo.rig.kernel.set_tenant(ADMIN, "lab/bob", 3, None)
        await asyncio.gather(zoo.ask(ANN, "ant"), zoo.ask(BOB, "bee"))
        worker, shares = zoo.rig.worker, zoo.rig.machine.scheduler.shares
        assert worker is not None
        worker.hold()
        tasks = [await zoo.begin(caller, name) for _ in range(60) for caller, name in ((ANN, "ant"), (BOB, "bee"))]
        since = [shares.service(path) for path in ("lab/ann", "lab/bob")]
        worker.release()
        await zoo.rig.until(lambda: sum(task.done() for task in tasks) >= 60)
        ann, bob = (shares.service(path) - before for path, before in zip(("lab/ann", "lab/bob"), since, strict=True))
        tariff = zoo.rig.machine.scheduler.charging.tariffs.get("ant")
        dearest_us = max(tariff.input_us(0, 9), tariff.output_us(9, 10)) * zoo.rig.sizes.max_rows
        assert abs(ann - bob / 3) <= 2 * dearest_us
        assert ann > 5 * dearest_us / 2, "enough was done for the bound to bite"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
