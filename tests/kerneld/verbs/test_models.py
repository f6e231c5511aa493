"""Models come and go beside requests, loads and workers that come and go."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.fake_model import FakeModel
from kerneld.calls import ListArgs, ModelState, RegisterArgs
from kerneld.errors import AlreadyExists, Conflict, InvalidArgument, NotFound, WrongState
from kerneld.models import Model, ModelTable, file_stamp, hash_files
from tests.kerneld.rig import ADMIN, SLAB, Rig, Sizes, in_loop, oracle, prompt_of, running

OTHER = FakeModel(weights_bytes=3000, seed=5)


@in_loop
async def test_a_model_that_fails_to_load_ends_what_waits_for_it_and_names_the_failure(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.options = {"oom_at_load": "1"}
    async with running(rig, loads=False):
        await rig.kernel.register_model(ADMIN, RegisterArgs("m", str(tmp_path / "models" / "m")))
        outputs = await asyncio.gather(*[rig.begin(await rig.alloc(), prompt_of(seed, 9), 5) for seed in range(3)])
        for output in outputs:
            assert output.reason == "error"
            assert "could not be loaded" in output.detail
        assert rig.kernel.stat_model(ADMIN, "m").state is ModelState.FAILED
        assert (await rig.infer(await rig.alloc(), prompt_of(7, 9), 5)).tokens == oracle(prompt_of(7, 9), 5), "the next request tries again"


@in_loop
async def test_a_load_that_lacks_memory_says_so_in_its_facts_and_one_that_fails_otherwise_does_not(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.options = {"oom_at_load": "1"}
    async with running(rig, loads=False):
        with pytest.raises(WrongState) as full:
            await rig.load()
        (tmp_path / "models" / "m" / "fake.json").write_text("{")
        with pytest.raises(WrongState) as corrupt:
            await rig.load()
    assert full.value.facts.get("tier") == "device"
    assert "tier" not in corrupt.value.facts


@in_loop
async def test_an_unload_lets_nothing_new_onto_the_model_that_leaves(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 9), 5)
        for turn in range(5):
            past = rig.tokens(context)
            leaving = asyncio.ensure_future(rig.kernel.unload_model(ADMIN, "m"))
            for _ in range(turn):
                await asyncio.sleep(0)
            assert (await rig.infer(context, (), 4)).tokens == oracle(past, 4)
            with contextlib.suppress(WrongState):  # the request was there first
                await leaving
        assert len(rig.workers) == 1


@in_loop
async def test_a_model_in_use_is_neither_unloaded_nor_removed(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        task = rig.begin(context, prompt_of(1, 9), 40)
        await rig.until(lambda: bool(rig.machine.requests))
        for call in (rig.kernel.unload_model(ADMIN, "m"), rig.kernel.remove_model(ADMIN, "m")):
            with pytest.raises(WrongState):
                await call
        assert (await task).tokens == oracle(prompt_of(1, 9), 40)


@in_loop
async def test_an_unload_during_a_load_gives_the_room_back_only_when_the_device_is_done(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=5))
    rig.add_model("other", FakeModel(weights_bytes=3 * SLAB, seed=5))
    async with running(rig):
        assert rig.worker is not None
        gate = rig.worker.load_gate = asyncio.Event()
        loading = asyncio.ensure_future(rig.load("other"))
        await rig.until(lambda: rig.worker is not None and rig.worker.num_loads == 2)
        unloading = asyncio.ensure_future(rig.kernel.unload_model(ADMIN, "other"))
        with pytest.raises(Conflict):
            await loading
        assert rig.machine.devices.first.pager.ledger.snapshot()[0].weights_bytes == 4 * SLAB, "the device still writes there"
        gate.set()
        await unloading
        assert rig.machine.devices.first.pager.ledger.snapshot()[0].weights_bytes == SLAB
        assert rig.worker.num_unloads == 1
        rig.worker.load_gate = None
        assert (await rig.load("other")).state is ModelState.RESIDENT


@in_loop
async def test_loads_of_one_model_are_one_load(tmp_path: Path) -> None:
    async with running(Rig(tmp_path), loads=False) as rig:
        await rig.kernel.register_model(ADMIN, RegisterArgs("m", str(tmp_path / "models" / "m")))
        await asyncio.gather(*[rig.load() for _ in range(5)])
        assert rig.worker is not None
        assert rig.worker.num_loads == 1


@in_loop
async def test_a_load_goes_on_with_the_next_worker(tmp_path: Path) -> None:
    async with running(Rig(tmp_path), loads=False) as rig:
        assert rig.worker is not None
        rig.worker.load_gate = asyncio.Event()
        loading = asyncio.ensure_future(rig.load())
        await rig.until(lambda: rig.worker is not None and rig.worker.num_loads == 1)
        rig.worker.load_gate.set()
        rig.worker.die()
        assert (await loading).state is ModelState.RESIDENT
        assert (await rig.infer(await rig.alloc(), prompt_of(1, 9), 5)).tokens == oracle(prompt_of(1, 9), 5)


@in_loop
async def test_a_removed_model_is_gone_with_its_pages(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.add_model("other", OTHER)
    async with running(rig):
        await rig.load("other")
        context = await rig.alloc(model="other")
        await rig.infer(context, prompt_of(1, 30), 5)
        with pytest.raises(WrongState):
            await rig.kernel.remove_model(ADMIN, "other")
        await rig.kernel.free(ADMIN, context)
        await rig.kernel.remove_model(ADMIN, "other")
        with pytest.raises(NotFound):
            rig.kernel.stat_model(ADMIN, "other")
        await rig.load("other")
        assert (await rig.infer(await rig.alloc(model="other"), prompt_of(1, 30), 5)).tokens == oracle(prompt_of(1, 30), 5, language=OTHER)


@in_loop
async def test_names_are_taken_once_and_paths_stay_under_a_root(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.add_model("other", OTHER)
    async with running(rig):
        with pytest.raises(AlreadyExists):
            await rig.kernel.register_model(ADMIN, RegisterArgs("m", str(tmp_path / "models" / "other")))
        for path in ("/etc", str(tmp_path / "models" / ".."), str(tmp_path / "models" / "nowhere")):
            with pytest.raises(InvalidArgument):
                await rig.kernel.register_model(ADMIN, RegisterArgs("n", path))
        assert [model.name for model in rig.kernel.list_models(ADMIN, ListArgs()).items] == ["m"]


@in_loop
async def test_how_a_model_is_quantized_is_part_of_what_it_is(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.add_model("other", OTHER)
    async with running(rig):
        path = str(tmp_path / "models" / "other")
        await rig.kernel.register_model(ADMIN, RegisterArgs("q", path, quant="int8", kv_quant="int8"))
        for args in (RegisterArgs("q", path), RegisterArgs("q", path, quant="int8")):
            model = await rig.kernel.register_model(ADMIN, args)
            assert (model.quant, model.kv_quant) == ("int8", "int8"), "who says nothing means the model as it is"
        for args in (RegisterArgs("q", path, quant="int4"), RegisterArgs("q", path, kv_quant="fp8")):
            with pytest.raises(AlreadyExists, match=f"taken by {path} with quant=int8, kv_quant=int8; remove it first"):
                await rig.kernel.register_model(ADMIN, args)


def test_weights_are_known_again_only_as_they_were_quantized() -> None:
    plain = Model("m", "/m", 0, "", "hash", "ann", None, None)
    others = [replace(plain, quant="int8"), replace(plain, kv_quant="int8"), replace(plain, max_positions=64)]
    assert len({model.weights_key for model in (plain, *others)}) == 4


def test_a_gguf_file_is_a_model_by_itself(tmp_path: Path) -> None:
    table = ModelTable([str(tmp_path)])
    for name in ("a.gguf", "b.gguf", "c.bin"):
        (tmp_path / name).write_bytes(name.encode())
    path = table.resolve(RegisterArgs("a", str(tmp_path / "a.gguf")))
    assert path == tmp_path / "a.gguf"
    assert hash_files(path) != hash_files(tmp_path / "b.gguf"), "of the one file alone"
    before = hash_files(path), file_stamp(path)
    (tmp_path / "b.gguf").write_bytes(b"another")
    assert (hash_files(path), file_stamp(path)) == before
    with pytest.raises(InvalidArgument, match="neither a directory nor a GGUF file"):
        table.resolve(RegisterArgs("c", str(tmp_path / "c.bin")))
