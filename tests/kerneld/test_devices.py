"""One daemon with two devices: where models and contexts go, and that what happens on one device is nothing to the other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.config import DeviceConfig
from drivers.contract import InspectSpec, ModelSpec
from drivers.errors import DriverUnavailable, ModelUnsupported
from drivers.fake_model import FakeModel
from kerneld.accounts import ShareAccount
from kerneld.calls import ForkArgs, Limits, ModelState
from kerneld.deviceparts import DeviceParts
from kerneld.errors import NotFound, WrongState
from kerneld.state.tables import TenantRow
from kerneld.weights.prospects import Prospect
from memory.errors import NeverFits
from memory.page import Tier
from tests.kerneld.rig import ADMIN, ANN, BOB, LANGUAGE, SLAB, Output, Rig, Sizes, in_loop, oracle, prompt_of, running

FAST, SLOW = {"prefill_s": "0.001"}, {"prefill_s": "0.01"}
BIG = FakeModel(weights_bytes=40 * SLAB, seed=7)


def rig_of(folder: Path, *, small_slabs: int = 16, big_slabs: int = 64, **sizes: int) -> Rig:
    """A small fast device and a large slow one."""
    rig = Rig(folder, Sizes(**sizes))
    rig.devices = (
        DeviceConfig(name="fast", driver="fake", device_bytes=small_slabs * SLAB, options=FAST),
        DeviceConfig(name="slow", driver="fake", device_bytes=big_slabs * SLAB, options=SLOW),
    )
    return rig


def parts(rig: Rig, name: str) -> DeviceParts:
    return rig.machine.devices.get(name)


def where(rig: Rig, context_id: str) -> str:
    return rig.stat(context_id).device


def equals_of(folder: Path, *, num_slabs: int | None = None, **sizes: int) -> Rig:
    """Two devices that are alike."""
    rig = Rig(folder, Sizes(**sizes))
    device_bytes = None if num_slabs is None else num_slabs * SLAB
    rig.devices = tuple(DeviceConfig(name=name, driver="fake", options=FAST, device_bytes=device_bytes) for name in ("a", "b"))
    return rig


async def two_models(rig: Rig) -> tuple[str, str]:
    """A context on the fast device, and one of a model that fits only the slow one."""
    rig.add_model("big", BIG)
    await rig.load("m")
    await rig.load("big")
    return await rig.alloc(), await rig.alloc(model="big")


# -------------------------------------------------------------------------------------------------------------------------- placement


@in_loop
async def test_a_model_goes_where_it_fits_and_a_small_one_where_it_is_fast(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        rig.add_model("big", BIG)
        rig.add_model("probe", replace_seed(3))
        for device in ("fast", "slow"):  # so that it is known how fast they are
            await rig.load("probe", device)

        assert (await rig.load("big")).device == "slow"
        assert (await rig.load("m")).device == "fast"


@in_loop
async def test_a_model_goes_where_nobody_has_to_leave_for_it(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path, num_slabs=16), loads=False) as rig:
        for name in ("one", "two"):
            rig.add_model(name, FakeModel(weights_bytes=10 * SLAB, seed=len(name)))
        assert [(await rig.load(name)).device for name in ("one", "two")] == ["a", "b"]
        assert rig.kernel.stat_model(ADMIN, "one").state is ModelState.RESIDENT


@in_loop
async def test_idle_models_leave_a_device_that_is_much_faster(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        rig.add_model("probe", replace_seed(3))
        for device in ("fast", "slow"):  # so that it is known how fast they are
            await rig.load("probe", device)
        for name in ("one", "two"):
            rig.add_model(name, FakeModel(weights_bytes=9 * SLAB, seed=len(name)))
        assert [(await rig.load(name)).device for name in ("one", "two")] == ["fast", "fast"]


@in_loop
async def test_streams_run_on_both_devices_at_once_and_say_what_they_should(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        small, big = await two_models(rig)
        running_there = [rig.begin(small, prompt_of(1, 9), 60), rig.begin(big, prompt_of(2, 9), 60)]
        await rig.until(lambda: all(parts(rig, name).scheduler.running.total for name in ("fast", "slow")))
        outputs = await asyncio.gather(*running_there)

        assert outputs[0].tokens == oracle(prompt_of(1, 9), 60)
        assert outputs[1].tokens == oracle(prompt_of(2, 9), 60, language=BIG)
        assert (where(rig, small), where(rig, big)) == ("fast", "slow")


@in_loop
async def test_a_second_copy_is_made_only_when_it_is_asked_for(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        assert (await rig.load()).device == "a"
        assert (await rig.load()).device == "a"
        assert (await rig.load(device="b")).device == "a, b"
        assert [copy.state for copy in rig.kernel.stat_model(ADMIN, "m").copies] == [ModelState.RESIDENT] * 2


@in_loop
async def test_of_two_copies_a_context_takes_the_one_that_is_done_first_and_stays(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        await rig.load(device="a")
        await rig.load(device="b")
        ids = [await rig.alloc() for _ in range(4)]
        for worker in rig.worker_of.values():
            worker.hold()
        streams = [rig.begin(each, prompt_of(seed, 9), 12) for seed, each in enumerate(ids)]
        await rig.until(lambda: len(rig.machine.requests) == 4)
        assert [where(rig, each) for each in ids] == ["a", "b", "a", "b"]
        for worker in rig.worker_of.values():
            worker.release()
        outputs = await asyncio.gather(*streams)

        assert [output.tokens for output in outputs] == [oracle(prompt_of(seed, 9), 12) for seed in range(4)]
        assert (await rig.infer(ids[3], max_tokens=3)).reason == "length"
        assert where(rig, ids[3]) == "b", "its pages are there, although the other device idles too and comes first"


@in_loop
async def test_a_fork_is_on_the_device_of_its_parent_and_shares_its_pages(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        await rig.load(device="b")
        parent = await rig.alloc()
        first = await rig.infer(parent, prompt_of(1, 16), 8)
        await rig.load(device="a")  # where nobody runs, and nothing of it is
        child = (await rig.kernel.fork(ANN, ForkArgs(parent))).id
        output = await rig.infer(child, max_tokens=8)

        assert where(rig, child) == "b"
        assert output.tokens == oracle([*prompt_of(1, 16), *first.tokens], 8)
        assert parts(rig, "a").pager.ledger.used("lab", Tier.DEVICE) == 0


@in_loop
async def test_a_context_that_outgrows_its_device_is_computed_again_on_one_where_it_fits(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path, small_slabs=4), loads=False) as rig:
        await rig.load(device="fast")
        context = await rig.alloc()
        first = await rig.infer(context, prompt_of(1, 40), 4)
        assert where(rig, context) == "fast"
        second = await rig.infer(context, prompt_of(2, 300), 4)

        assert where(rig, context) == "slow"
        assert second.tokens == oracle([*prompt_of(1, 40), *first.tokens, *prompt_of(2, 300)], 4)
        assert parts(rig, "fast").pager.ledger.used("lab", Tier.DEVICE) == 0


@in_loop
async def test_what_fits_no_device_is_refused_by_the_largest(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path, small_slabs=4, big_slabs=8), loads=False) as rig:
        await rig.load(device="fast")
        with pytest.raises(NeverFits) as refused:
            await rig.infer(await rig.alloc(), prompt_of(1, 600), 4)
        assert refused.value.limit_bytes > 4 * SLAB


@in_loop
async def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        with pytest.raises(NotFound, match=r"There is no device 'c'. There are: a, b."):
            await rig.load(device="c")


@in_loop
async def test_a_model_leaves_one_device_and_stays_on_the_other(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        await rig.load(device="a")
        await rig.load(device="b")
        on_a = await rig.alloc()
        await rig.infer(on_a, prompt_of(1, 9), 4)
        assert (await rig.kernel.unload_model(ADMIN, "m", "b")).device == "a"
        assert (await rig.infer(on_a, max_tokens=4)).reason == "length"

        stream = rig.begin(on_a, max_tokens=100)
        await rig.until(lambda: len(rig.machine.requests) == 1)
        with pytest.raises(WrongState, match="1 requests are on the model"):
            await rig.kernel.unload_model(ADMIN, "m", "a")
        assert (await rig.kernel.unload_model(ADMIN, "m", "b")).device == "a", "nobody uses it there"
        await stream


@in_loop
async def test_requests_keep_a_model_where_they_run(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        await rig.load(device="b")
        stream = rig.begin(await rig.alloc(), prompt_of(1, 9), 60)
        await rig.until(lambda: parts(rig, "b").scheduler.running.total == 1)
        with pytest.raises(WrongState, match="1 requests are on the model"):
            await rig.kernel.unload_model(ADMIN, "m", "b")
        await rig.kernel.unload_model(ADMIN, "m", "a")
        assert (await stream).reason == "length"


@in_loop
async def test_a_load_that_fails_ends_nobody_on_the_other_device(tmp_path: Path) -> None:
    rig = equals_of(tmp_path)
    rig.devices = (rig.devices[0], replace(rig.devices[1], options={"oom_at_load": "1"}))
    async with running(rig, loads=False):
        await rig.load(device="a")
        stream = rig.begin(await rig.alloc(), prompt_of(1, 9), 60)
        await rig.until(lambda: parts(rig, "a").scheduler.running.total == 1)
        with pytest.raises(WrongState, match="could not be loaded"):
            await rig.load(device="b")
        assert (await stream).tokens == oracle(prompt_of(1, 9), 60)
        states = {copy.device: copy.state for copy in rig.kernel.stat_model(ADMIN, "m").copies}
        assert states == {"a": ModelState.RESIDENT, "b": ModelState.FAILED}


@in_loop
async def test_a_context_that_is_moved_has_nothing_computed(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        await rig.load(device="a")
        context_id = await rig.alloc()
        await rig.infer(context_id, prompt_of(1, 9), 4)
        context = rig.machine.contexts.find(context_id)
        assert context is not None
        rig.machine.placer.move(context, parts(rig, "b"))
        assert (context.device, context.kv_valid, context.table, context.chain) == ("b", 0, None, None)


@in_loop
async def test_a_driver_that_cannot_run_a_model_is_asked_about_it_once(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        asked = []

        async def refuse(spec: InspectSpec) -> ModelSpec:
            asked.append(spec.path)
            raise ModelUnsupported("It is of another family.")

        rig.worker_of["a"].inspect = refuse  # type: ignore[method-assign]
        assert (await rig.load()).device == "b"
        for seed in range(3):
            context = await rig.alloc()
            assert (await rig.infer(context, prompt_of(seed, 9), 4)).reason == "length"
            assert where(rig, context) == "b"
        assert len(asked) == 1


@in_loop
async def test_prospects_tell_what_stands_between_a_model_and_a_device(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        small, big = await two_models(rig)
        residency, models = parts(rig, "fast").residency, parts(rig, "fast").models
        assert [residency.prospect(models.get(name)) for name in ("m", "big")] == [Prospect.THERE, Prospect.NEVER]
        rig.add_model("half", FakeModel(weights_bytes=13 * SLAB, seed=9))
        await rig.load("half", "slow")
        assert residency.prospect(models.get("half")) is Prospect.FREE
        rig.add_model("most", FakeModel(weights_bytes=14 * SLAB, seed=11))
        await rig.load("most", "slow")
        assert residency.prospect(models.get("most")) is Prospect.FITS
        await rig.kernel.pin_model(ADMIN, "m")
        assert residency.prospect(models.get("most")) is Prospect.NEVER
        await rig.infer(small, prompt_of(1, 9), 2)
        assert big


@in_loop
async def test_who_was_on_a_device_whose_worker_fails_again_and_again_goes_on_elsewhere(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        await rig.load(device="a")
        context = await rig.alloc()
        first = await rig.infer(context, prompt_of(1, 40), 4)
        await rig.infer(await rig.alloc(), prompt_of(2, 9), 9)  # plans that take copies of its pages along
        await rig.settle()
        rig.is_worker_replaced = False
        rig.worker_of["a"].die()
        await rig.until(lambda: not parts(rig, "a").is_running)
        supervisor = parts(rig, "a").supervisor
        for _ in range(2):
            assert not supervisor.is_failing
            supervisor.failed(rig.worker_of["a"].hello, DriverUnavailable("It is broken."))
        assert supervisor.is_failing
        assert rig.stat(context).pages.host > 0, "its pages are where it was"

        output = await rig.infer(context, max_tokens=20)
        assert where(rig, context) == "b"
        assert output.tokens == oracle([*prompt_of(1, 40), *first.tokens], 20)


# ------------------------------------------------------------------------------------------------------------------------- two deaths


@in_loop
async def test_a_worker_that_dies_is_nothing_to_the_streams_of_the_other(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        small, big = await two_models(rig)
        streams = [rig.begin(small, prompt_of(1, 9), 90), rig.begin(big, prompt_of(2, 9), 90)]
        await rig.until(lambda: sum(request.num_generated > 9 for request in rig.machine.requests.values()) == 2)
        survivor, num_steps = rig.worker_of["fast"], rig.worker_of["fast"].num_steps
        seat = parts(rig, "fast").dispatcher.composer.seats.rows[0]
        rig.worker_of["slow"].die()
        await rig.until(lambda: survivor.num_steps > num_steps + 5 or not rig.machine.requests)
        assert parts(rig, "fast").dispatcher.composer.seats.rows[:1] in ([seat], []), "it never left its row"
        outputs = await asyncio.gather(*streams)

        assert outputs[0].tokens == oracle(prompt_of(1, 9), 90)
        assert outputs[1].tokens == oracle(prompt_of(2, 9), 90, language=BIG)
        assert rig.worker_of["fast"] is survivor
        assert [parts(rig, name).supervisor.restarts for name in ("fast", "slow")] == [0, 1]


@in_loop
@pytest.mark.parametrize("keeps_workers", [True, False])
async def test_a_restart_goes_on_with_both_devices(tmp_path: Path, keeps_workers: bool) -> None:
    async with running(rig_of(tmp_path, disk_slabs=64), loads=False) as rig:
        small, big = await two_models(rig)
        rig.begin(small, prompt_of(1, 9), 60)
        rig.begin(big, prompt_of(2, 9), 60)
        await rig.until(lambda: sum(request.num_generated > 9 for request in rig.machine.requests.values()) == 2)
        await rig.die_and_return(keeps_worker=keeps_workers)
        await rig.until(lambda: not rig.machine.requests)

        assert rig.tokens(small)[9:] == oracle(prompt_of(1, 9), 60)
        assert rig.tokens(big)[9:] == oracle(prompt_of(2, 9), 60, language=BIG)
        assert [rig.kernel.stat_model(ADMIN, name).device for name in ("m", "big")] == ["fast", "slow"]


@in_loop
async def test_a_restart_brings_a_model_back_where_it_was_wanted_last(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        await rig.load(device="a")
        await rig.load(device="b")
        await rig.kernel.unload_model(ADMIN, "m", "a")
        await rig.die_and_return()
        await rig.until(lambda: bool(rig.kernel.stat_model(ADMIN, "m").device))
        await rig.settle()
        assert rig.kernel.stat_model(ADMIN, "m").device == "b"


@in_loop
async def test_an_unfinished_request_goes_on_although_its_pages_are_elsewhere(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        await rig.load(device="b")
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 40), 4)
        await rig.load(device="a")
        rig.begin(context, max_tokens=60)
        await rig.until(lambda: len(rig.tokens(context)) > 50)
        assert where(rig, context) == "b"
        await rig.die_and_return(keeps_worker=True)
        assert where(rig, context) == "a", "nobody knew where its pages are"
        await rig.until(lambda: not rig.machine.requests)
        assert rig.tokens(context)[40:] == oracle(prompt_of(1, 40), 64)


@in_loop
async def test_pages_that_a_worker_kept_are_adopted_on_its_device(tmp_path: Path) -> None:
    async with running(equals_of(tmp_path), loads=False) as rig:
        await rig.load(device="b")
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 40), 4)
        await rig.load(device="a")
        other = await rig.alloc()
        await rig.infer(other, prompt_of(2, 40), 4)
        await rig.settle()
        await rig.die_and_return(keeps_worker=True)
        await rig.until(lambda: "" not in (where(rig, context), where(rig, other)))
        assert (where(rig, context), where(rig, other)) == ("b", "a")
        assert [len(device.pager._tables) for device in rig.machine.devices] == [1, 1]
        assert (await rig.infer(context, max_tokens=4)).tokens == oracle(rig.tokens(context)[:44], 4)


@in_loop
async def test_a_state_of_one_device_goes_on_with_two_and_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with running(rig):
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 9), 20)
        service = rig.machine.scheduler.shares.service("lab/ann")
        rig.devices = equals_of(tmp_path).devices
        await rig.die_and_return()
        assert [device.scheduler.shares.service("lab/ann") for device in rig.machine.devices] == [service] * 2
        await rig.infer(context, max_tokens=20)
        assert where(rig, context) == "a"
        service = rig.machine.scheduler.shares.service("lab/ann")
        rig.devices = ()
        await rig.die_and_return()
        await rig.infer(context, max_tokens=20)
        assert rig.tokens(context)[9:] == oracle(prompt_of(1, 9), 60)
        assert rig.machine.scheduler.shares.service("lab/ann") > service


# ---------------------------------------------------------------------------------------------------------------------- what is shared


@in_loop
async def test_service_counts_wherever_it_was_had(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        small, big = await two_models(rig)
        await rig.infer(small, prompt_of(1, 9), 20)
        trees = [device.scheduler.shares for device in rig.machine.devices]
        once = trees[0].service("lab/ann")
        assert once == trees[1].service("lab/ann") > 0
        await rig.infer(big, prompt_of(2, 9), 20)
        assert trees[0].service("lab/ann") == trees[1].service("lab/ann") == rig.machine.scheduler.shares.service("lab/ann") > once


@in_loop
async def test_who_was_served_on_one_device_goes_later_on_the_other(tmp_path: Path) -> None:
    rig = rig_of(tmp_path, max_rows=1)
    async with running(rig, loads=False):
        small, big = await two_models(rig)
        bobs = [await rig.alloc(BOB, model="big") for _ in range(2)]
        anns = [await rig.alloc(ANN, model="big") for _ in range(2)]
        rig.worker_of["slow"].hold()
        streams = [rig.begin(big, prompt_of(9, 9), 4)]  # so that the others wait
        await rig.until(lambda: parts(rig, "slow").scheduler.running.total == 1)
        streams += [rig.begin(each, prompt_of(idx, 9), 4) for idx, each in enumerate(anns)]
        streams += [rig.begin(each, prompt_of(idx, 9), 4, caller=BOB) for idx, each in enumerate(bobs)]
        await rig.until(lambda: parts(rig, "slow").scheduler.waiting.total == 4)
        line = [request.tenant for request in parts(rig, "slow").scheduler.line(4)]
        await rig.infer(small, prompt_of(1, 9), 60)  # ann, elsewhere
        later = [request.tenant for request in parts(rig, "slow").scheduler.line(4)]
        rig.worker_of["slow"].release()
        await asyncio.gather(*streams)

        assert later.index("lab/ann") > line.index("lab/ann") or line[0] == "lab/bob"
        assert later[:2] == ["lab/bob", "lab/bob"]


@in_loop
async def test_accounts_of_both_devices_survive_the_daemon(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        small, big = await two_models(rig)
        await rig.infer(small, prompt_of(1, 9), 20)
        await rig.infer(big, prompt_of(2, 9), 20)
        rig.machine.books.flush()
        before = [device.scheduler.shares.snapshot() for device in rig.machine.devices]
        await rig.die_and_return()
        after = [device.scheduler.shares.snapshot() for device in rig.machine.devices]

        def counters(trees: list[tuple[ShareAccount, ...]]) -> list[dict[str, int]]:
            return [{account.path: account.counter for account in tree} for tree in trees]

        assert counters(after) == counters(before)


@in_loop
async def test_running_requests_of_a_tenant_count_on_all_devices(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        small, big = await two_models(rig)
        await rig.kernel.set_tenant(ADMIN, "lab/ann", None, Limits(max_running=1))
        rig.worker_of["fast"].hold()
        first = rig.begin(small, prompt_of(1, 9), 8)
        await rig.until(lambda: parts(rig, "fast").scheduler.running.total == 1)
        second = rig.begin(big, prompt_of(2, 9), 8)
        await rig.until(lambda: len(rig.machine.requests) == 2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert parts(rig, "slow").scheduler.running.total == 0
        rig.worker_of["fast"].release()
        outputs: list[Output] = await asyncio.gather(first, second)
        assert [output.reason for output in outputs] == ["length", "length"]


@in_loop
async def test_limits_hold_on_each_device_and_a_guarantee_has_to_fit_all(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        small, big = await two_models(rig)
        await rig.infer(small, prompt_of(1, 40), 4)
        await rig.infer(big, prompt_of(2, 40), 4)
        set_now = await rig.kernel.set_tenant(ADMIN, "lab/ann", None, Limits(device_bytes=SLAB))
        assert set_now.kv_device_bytes > SLAB, "each device has less, both have more"
        assert [change.outcome.value for change in set_now.changes] == ["applied"]
        assert [device.pager.ledger.limit("lab/ann", Tier.DEVICE).limit_bytes for device in rig.machine.devices] == [SLAB, SLAB]
        with pytest.raises(WrongState, match="guarantees of the device tier of fast would add up"):
            await rig.kernel.set_tenant(ADMIN, "lab/bob", None, Limits(device_guarantee_bytes=32 * SLAB))


@in_loop
async def test_a_tenant_is_gone_from_all_devices(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        await two_models(rig)
        row = TenantRow("lab/eve", 1, Limits(), 0.0, b"e" * 32)
        await rig.machine.store.add_tenant(row)
        rig.machine.know_tenant(row)
        assert all("lab/eve" in device.scheduler.shares for device in rig.machine.devices)
        await rig.kernel.remove_tenant(ADMIN, "lab/eve", False)
        assert not any("lab/eve" in device.scheduler.shares for device in rig.machine.devices)


@in_loop
async def test_suspended_contexts_and_drains_know_their_device(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path, disk_slabs=64), loads=False) as rig:
        small, big = await two_models(rig)
        for context, seed in ((small, 1), (big, 2)):
            await rig.infer(context, prompt_of(seed, 40), 4)
            info = await rig.kernel.suspend_to_disk(ANN, context)
            assert info.pages.device == info.pages.host == 0
            await rig.kernel.resume(ANN, context)
        assert (await rig.infer(big, max_tokens=4)).tokens == oracle(rig.tokens(big)[:44], 4, language=BIG)
        drained = await rig.kernel.drain(ADMIN, 5.0)
        assert drained.left_for_next_start == 0


@in_loop
async def test_a_score_runs_where_its_context_is(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        _small, big = await two_models(rig)
        await rig.infer(big, prompt_of(1, 9), 4)
        score = await rig.begin_score(big, prompt_of(3, 6))
        assert len(score.logprobs) == 6


@in_loop
async def test_displays_name_the_device(tmp_path: Path) -> None:
    async with running(rig_of(tmp_path), loads=False) as rig:
        small, big = await two_models(rig)
        await rig.infer(small, prompt_of(1, 9), 4)
        await rig.infer(big, prompt_of(2, 9), 4)
        frames = [frame async for frame in rig.kernel.top(ADMIN, 0.1, 1)]
        assert [(worker.device, worker.state) for worker in frames[0].workers] == [("fast", "running"), ("slow", "running")]
        assert {use.device for use in frames[0].tiers} == {"fast", "slow"}
        report = rig.kernel.read_memory(ADMIN)
        assert {(total.device, total.tier) for total in report.tiers} >= {("fast", "device"), ("slow", "device"), ("fast", "host")}
        assert {account.device for account in report.accounts if account.owner == "lab/ann" and account.kinds} == {"fast", "slow"}
        page = rig.daemon.metrics.render().decode()
        assert 'kerneld_device_memory_bytes{device="slow",kind="weights",tier="device"}' in page
        told = rig.kernel.explain_context(ADMIN, big)
        assert {placement.device for placement in told.placements if placement.tier == "device"} == {"slow"}
        parts_checked = [part.part async for part in rig.kernel.fsck(ADMIN)]
        assert "books of slow" in parts_checked


def replace_seed(seed: int) -> FakeModel:
    return FakeModel(weights_bytes=LANGUAGE.weights_bytes, seed=seed)
