"""Adapters are models with a base: the same verbs, contexts that name them, and pages that never pass for those of another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from drivers.errors import ModelCorrupt
from drivers.fake_model import FakeAdapter, FakeModel, continuation
from kerneld.calls import CheckpointArgs, ForkArgs, ListArgs, ModelState, RegisterArgs
from kerneld.errors import AlreadyExists, InvalidArgument, NotFound, WrongState
from memory.ledger import Kind
from memory.page import Tier
from tests.kerneld.rig import ADMIN, ANN, GREEDY, LANGUAGE, SLAB, Rig, Sizes, in_loop, oracle, prompt_of, running

A, B = FakeAdapter(weights_bytes=1000, seed=1), FakeAdapter(weights_bytes=1000, seed=2)
PROMPT = prompt_of(1, 9)


def lay(rig: Rig, name: str, adapter: FakeAdapter) -> RegisterArgs:
    """Lay down an adapter's directory; answers how it is registered for the rig's model."""
    folder = rig.folder / "models" / name
    folder.mkdir(exist_ok=True)
    settings = {key: getattr(adapter, key) for key in adapter.__struct_fields__}
    (folder / "fake.json").write_text(json.dumps(settings))
    (folder / "adapter_config.json").write_text("{}")
    return RegisterArgs(name, str(folder), base="m")


async def register(rig: Rig) -> None:
    """Register adapters `a` and `b` of the rig's model."""
    for name, adapter in (("a", A), ("b", B)):
        await rig.kernel.register_model(ADMIN, lay(rig, name, adapter))


def speak(adapter: FakeAdapter, tokens: Sequence[int], num_tokens: int) -> list[int]:
    """What a context with an adapter goes on with."""
    return continuation(LANGUAGE, list(tokens), num_tokens, GREEDY, adapter)


@in_loop
async def test_contexts_of_a_base_and_two_adapters_run_in_one_batch(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        contexts = [await rig.alloc(), await rig.alloc(adapter="a"), await rig.alloc(adapter="b"), await rig.alloc(model="a")]
        outputs = await asyncio.gather(*[rig.begin(context, PROMPT, 12) for context in contexts])
        expected = [oracle(PROMPT, 12), speak(A, PROMPT, 12), speak(B, PROMPT, 12), speak(A, PROMPT, 12)]
        assert [output.tokens for output in outputs] == expected
        told = [rig.stat(context) for context in contexts]
        assert [(info.model, info.adapter) for info in told] == [("m", ""), ("m", "a"), ("m", "b"), ("m", "a")]
        assert [rig.kernel.stat_model(ADMIN, name).num_contexts for name in "mab"] == [4, 2, 1]
        listed = {name: [info.id for info in rig.kernel.list_contexts(ANN, ListArgs(model=name)).items] for name in "ma"}
        assert set(listed["m"]) == set(contexts)
        assert set(listed["a"]) == {contexts[1], contexts[3]}


@in_loop
async def test_an_adapter_is_told_with_its_base_and_charged_as_an_adapter(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        info = rig.kernel.stat_model(ADMIN, "a")
        assert (info.base, info.state, info.vocab_size) == ("m", ModelState.REGISTERED, LANGUAGE.vocab_size)
        assert info.architecture.startswith("LoRA")
        await rig.infer(await rig.alloc(adapter="a"), PROMPT, 3)
        assert rig.kernel.stat_model(ADMIN, "a").state is ModelState.RESIDENT
        assert rig.machine.devices.first.pager.ledger.kind_bytes(Tier.DEVICE, Kind.ADAPTER) == SLAB
        assert (await rig.kernel.unload_model(ADMIN, "a")).state is ModelState.REGISTERED
        assert rig.machine.devices.first.pager.ledger.kind_bytes(Tier.DEVICE, Kind.ADAPTER) == 0


@in_loop
async def test_an_adapter_is_registered_once_and_only_for_a_base_that_fits(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        args = lay(rig, "a", A)
        await rig.kernel.register_model(ADMIN, args)
        await rig.kernel.register_model(ADMIN, args)
        rig.add_model("other", FakeModel(num_layers=2))
        await rig.load("other")
        with pytest.raises(AlreadyExists):
            await rig.kernel.register_model(ADMIN, RegisterArgs("a", args.path, base="other"))
        with pytest.raises(ModelCorrupt, match="another base"):
            await rig.kernel.register_model(ADMIN, RegisterArgs("x", args.path, base="other"))
        with pytest.raises(NotFound):
            await rig.kernel.register_model(ADMIN, RegisterArgs("x", args.path, base="nobody"))
        with pytest.raises(InvalidArgument, match="adapter itself"):
            await rig.kernel.register_model(ADMIN, RegisterArgs("x", args.path, base="a"))
        with pytest.raises(InvalidArgument, match="max_positions"):
            await rig.kernel.register_model(ADMIN, RegisterArgs("x", args.path, 64, base="m"))
        with pytest.raises(InvalidArgument, match="name the registered model"):
            await rig.kernel.register_model(ADMIN, RegisterArgs("x", args.path))
        assert {model.name for model in rig.machine.devices.first.models} == {"m", "a", "other"}


@in_loop
async def test_a_context_may_only_name_an_adapter_of_its_model(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        rig.add_model("other", FakeModel(seed=5))
        await rig.load("other")
        for model, adapter in (("other", "a"), ("m", "other"), ("a", "b")):
            with pytest.raises(InvalidArgument, match="adapter"):
                await rig.alloc(model=model, adapter=adapter)
        with pytest.raises(NotFound):
            await rig.alloc(adapter="nobody")
        assert len(rig.machine.contexts) == 0


@in_loop
async def test_what_is_needed_is_neither_removed_nor_unloaded(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        context = await rig.alloc(adapter="a")
        with pytest.raises(WrongState, match=context):
            await rig.kernel.remove_model(ADMIN, "a")
        with pytest.raises(WrongState, match="adapters: a, b"):
            await rig.kernel.remove_model(ADMIN, "m")
        task = rig.begin(context, PROMPT, 40)
        await rig.until(lambda: bool(rig.machine.requests))
        for name in ("a", "m"):
            with pytest.raises(WrongState, match="requests"):
                await rig.kernel.unload_model(ADMIN, name)
        assert (await task).tokens == speak(A, PROMPT, 40)
        await rig.kernel.free(ANN, context)
        for name in ("a", "b", "m"):
            await rig.kernel.remove_model(ADMIN, name)
        assert not list(rig.machine.devices.first.models)


@in_loop
async def test_a_base_takes_its_adapters_along_and_requests_bring_both_back(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        context = await rig.alloc(adapter="a")
        await rig.infer(context, PROMPT, 5)
        await rig.kernel.unload_model(ADMIN, "m")
        assert [rig.kernel.stat_model(ADMIN, name).state for name in "ma"] == [ModelState.REGISTERED] * 2
        past = rig.tokens(context)
        assert (await rig.infer(context, (), 5)).tokens == speak(A, past, 5)
        assert [rig.kernel.stat_model(ADMIN, name).state for name in "mab"] == [
            ModelState.RESIDENT,
            ModelState.RESIDENT,
            ModelState.REGISTERED,
        ]


@in_loop
async def test_a_load_of_an_adapter_brings_its_base(tmp_path: Path) -> None:
    async with running(Rig(tmp_path), loads=False) as rig:
        await rig.kernel.register_model(ADMIN, RegisterArgs("m", str(tmp_path / "models" / "m")))
        told = [item async for item in rig.kernel.load_model(ADMIN, lay(rig, "a", A))]
        assert told
        assert [rig.kernel.stat_model(ADMIN, name).state for name in "ma"] == [ModelState.RESIDENT] * 2


@in_loop
async def test_a_fork_keeps_the_adapter_and_shares_its_pages(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        parent = await rig.alloc(adapter="a")
        await rig.infer(parent, PROMPT, 7)
        child = await rig.kernel.fork(ANN, ForkArgs(parent))
        assert child.adapter == "a"
        past = rig.tokens(parent)
        output = await rig.infer(child.id, (), 5)
        assert output.tokens == speak(A, past, 5)
        assert rig.stat(parent).pages.shared > 0


@in_loop
async def test_equal_tokens_on_base_and_adapter_have_no_page_in_common(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        keys = []
        for adapter in ("", "a", "b"):
            context = await rig.alloc(adapter=adapter)
            output = await rig.infer(context, prompt_of(1, 24), 4)
            assert output.finished is not None
            assert output.finished.usage.cached_tokens == 0
            found = rig.machine.contexts.find(context)
            assert found is not None
            assert found.chain is not None
            keys.append(set(found.chain.keys))
        assert len(set.union(*keys)) == sum(map(len, keys))


@in_loop
async def test_a_worker_that_dies_costs_no_adapter(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        contexts = {name: await rig.alloc(adapter=name) for name in ("", "a", "b")}
        tasks = [rig.begin(context, PROMPT, 40) for context in contexts.values()]
        await rig.until(lambda: all(len(rig.tokens(context)) > 20 for context in contexts.values()))
        assert rig.worker is not None
        rig.worker.die()
        outputs = [await task for task in tasks]
        assert [output.tokens for output in outputs] == [oracle(PROMPT, 40), speak(A, PROMPT, 40), speak(B, PROMPT, 40)]
        assert len(rig.workers) == 2


@pytest.mark.parametrize("keeps_worker", [True, False])
@in_loop
async def test_a_restart_brings_back_adapters_and_their_contexts(keeps_worker: bool, tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        contexts = {name: await rig.alloc(adapter=name) for name in ("", "a", "b")}
        for context in contexts.values():
            await rig.infer(context, PROMPT, 20)
        told = [item async for item in rig.kernel.load_model(ADMIN, RegisterArgs("a"))]
        assert told
        await rig.die_and_return(keeps_worker=keeps_worker)
        assert {name: rig.stat(context).adapter for name, context in contexts.items()} == {"": "", "a": "a", "b": "b"}
        for (name, context), adapter in zip(contexts.items(), (None, A, B), strict=True):
            past = rig.tokens(context)
            expected = oracle(past, 6) if adapter is None else speak(adapter, past, 6)
            assert (await rig.infer(context, (), 6)).tokens == expected, name
        assert rig.kernel.stat_model(ADMIN, "a").state is ModelState.RESIDENT


@in_loop
async def test_an_image_names_its_adapter_and_its_pages_fit_no_other(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        context = await rig.alloc(adapter="a")
        await rig.infer(context, PROMPT, 12)
        image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
        restored = await rig.kernel.restore(ANN, image.id, {})
        assert restored.context.adapter == "a"
        assert restored.pages_restored > 0
        past = rig.tokens(context)
        assert (await rig.infer(restored.context.id, (), 5)).tokens == speak(A, past, 5)
        for other in (context, restored.context.id):
            await rig.kernel.free(ANN, other)
        await rig.kernel.remove_model(ADMIN, "a")
        with pytest.raises(NotFound, match="'a'"):
            await rig.kernel.restore(ANN, image.id, {})
        changed = lay(rig, "a", FakeAdapter(weights_bytes=1000, seed=9))
        await rig.kernel.register_model(ADMIN, changed)
        again = await rig.kernel.restore(ANN, image.id, {})
        assert again.pages_restored == 0
        assert again.recompute_reason


@in_loop
async def test_files_that_changed_are_another_adapter(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        context = await rig.alloc(adapter="a")
        await rig.infer(context, PROMPT, 5)
        lay(rig, "a", FakeAdapter(weights_bytes=1000, seed=9))
        await rig.die_and_return()
        with pytest.raises(WrongState, match="changed"):
            await rig.infer(context, (), 5)
        assert (await rig.infer(await rig.alloc(adapter="a"), PROMPT, 5)).tokens == speak(
            FakeAdapter(weights_bytes=1000, seed=9), PROMPT, 5
        )


@in_loop
async def test_an_adapter_that_fails_to_load_ends_its_own_requests_only(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes())
    rig.options = {"oom_at_load": "2"}
    async with running(rig):
        await register(rig)
        base, adapted = await rig.alloc(), await rig.alloc(adapter="a")
        outputs = await asyncio.gather(rig.begin(base, PROMPT, 10), rig.begin(adapted, PROMPT, 10))
        assert outputs[0].tokens == oracle(PROMPT, 10)
        assert outputs[1].reason == "error"
        assert "could not be loaded" in outputs[1].detail
        assert (await rig.infer(await rig.alloc(adapter="a"), PROMPT, 5)).tokens == speak(A, PROMPT, 5)


@in_loop
async def test_adapters_that_do_not_all_fit_take_turns_and_the_least_used_leaves_first(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=6, host_slabs=32))  # the base, one slab of pages, and four adapters
    rig.memory = {"min_residency_s": 0.0, "max_model_wait_s": 0.0}
    async with running(rig):
        adapters = {f"a{idx}": FakeAdapter(weights_bytes=1000, seed=idx) for idx in range(8)}
        contexts = {}
        for name, adapter in adapters.items():
            await rig.kernel.register_model(ADMIN, lay(rig, name, adapter))
            contexts[name] = await rig.alloc(adapter=name)
            assert (await rig.infer(contexts[name], PROMPT, 4)).tokens == speak(adapter, PROMPT, 4)
        resident = [name for name in adapters if rig.kernel.stat_model(ADMIN, name).state is ModelState.RESIDENT]
        assert 2 <= len(resident) <= 4
        assert resident == list(adapters)[-len(resident) :], "those that were used last stayed"
        assert rig.kernel.stat_model(ADMIN, "m").state is ModelState.RESIDENT
        long = await rig.alloc()
        assert (await rig.infer(long, prompt_of(3, 100), 4)).tokens == oracle(prompt_of(3, 100), 4), "idle adapters make room for pages"
        await rig.kernel.free(ANN, long)
        pasts = {name: rig.tokens(context) for name, context in contexts.items()}
        outputs = await asyncio.gather(*[rig.begin(context, (), 6) for context in contexts.values()])
        for output, (name, adapter) in zip(outputs, adapters.items(), strict=True):
            assert output.tokens == speak(adapter, pasts[name], 6), name
        assert len(rig.workers) == 1


@in_loop
async def test_an_adapter_comes_back_from_the_host_tier(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await register(rig)
        context = await rig.alloc(adapter="a")
        await rig.infer(context, PROMPT, 4)
        await rig.kernel.unload_model(ADMIN, "a")
        assert rig.machine.devices.first.pager.ledger.kind_bytes(Tier.HOST, Kind.ADAPTER) == SLAB
        past = rig.tokens(context)
        assert (await rig.infer(context, (), 5)).tokens == speak(A, past, 5)
        await rig.kernel.free(ANN, context)
        await rig.kernel.remove_model(ADMIN, "a")
        assert rig.machine.devices.first.pager.ledger.kind_bytes(Tier.HOST, Kind.ADAPTER) == 0


@in_loop
async def test_an_adapter_whose_base_leaves_while_it_is_copied_comes_with_it_again(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes())) as rig:
        await register(rig)
        context = await rig.alloc(adapter="a")
        assert rig.worker is not None
        before, gate = rig.worker.num_loads, asyncio.Event()
        rig.worker.load_gate = gate
        waiting = rig.begin(context, PROMPT, 5)
        await rig.until(lambda: rig.worker is not None and rig.worker.num_loads > before)
        await rig.machine.devices.first.residency.evict(rig.machine.devices.first.models.get("m"))
        gate.set()
        assert (await waiting).tokens == speak(A, PROMPT, 5)


@in_loop
async def test_a_pinned_adapter_keeps_its_base(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=8, host_slabs=32))
    rig.memory = {"min_residency_s": 0.0, "max_model_wait_s": 0.0}
    async with running(rig):
        await register(rig)
        await rig.infer(await rig.alloc(adapter="a"), PROMPT, 4)
        await rig.kernel.pin_model(ADMIN, "a")
        rig.add_model("other", FakeModel(weights_bytes=6 * SLAB, seed=5))
        with pytest.raises(WrongState, match="could not be loaded"):
            await rig.load("other")
        assert [rig.kernel.stat_model(ADMIN, name).state for name in "ma"] == [ModelState.RESIDENT] * 2
        await rig.kernel.unpin_model(ADMIN, "a")
        await rig.load("other")


@pytest.mark.parametrize("min_residency_s", [0.3, 0.0])
@in_loop
async def test_adapters_of_two_bases_that_do_not_both_fit_all_get_their_turn(tmp_path: Path, min_residency_s: float) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=16, host_slabs=64))
    rig.memory = {"min_residency_s": min_residency_s, "max_model_wait_s": 0.0}
    bases = {name: FakeModel(weights_bytes=8 * SLAB, seed=seed) for name, seed in (("m", 1), ("other", 2))}
    async with running(rig, loads=False):
        expected, contexts = [], []
        for base, language in bases.items():
            rig.add_model(base, language)
            await rig.kernel.register_model(ADMIN, RegisterArgs(base, str(tmp_path / "models" / base)))
            for name, adapter in ((f"{base}-a", A), (f"{base}-b", B)):
                args = lay(rig, name, adapter)
                await rig.kernel.register_model(ADMIN, RegisterArgs(name, args.path, base=base))
                contexts.append(await rig.alloc(model=name))
                expected.append(continuation(language, PROMPT, 20, GREEDY, adapter))
        outputs = await asyncio.gather(*[rig.begin(context, PROMPT, 20) for context in contexts])
        assert [(output.tokens, output.detail) for output in outputs] == [(tokens, "") for tokens in expected]
        assert len(rig.workers) == 1
