"""A daemon that comes back: what was acknowledged is there, streams go on, and what a worker kept is used again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drivers.contract import Sampling
from drivers.fake_model import FakeModel
from kerneld.calls import ContextState, Durability, FinishReason, Limits, ListArgs, ModelState, SetArgs
from kerneld.errors import NotFound
from kerneld.events import Event, RequestAdmitted
from kerneld.request import Request
from tests.kerneld.rig import ADMIN, ANN, BOB, LANGUAGE, Rig, Sizes, in_loop, oracle, prompt_of, running


@pytest.mark.parametrize("num_turns", [0, 3, 7, 12, 20, 33])
@in_loop
async def test_streams_go_on_by_attach_without_a_gap_or_a_duplicate(tmp_path: Path, num_turns: int) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        kinds = [Durability.JOURNAL, Durability.FSYNC, Durability.JOURNAL]
        ids = [await rig.alloc(durability=kind) for kind in kinds]
        rig.worker.hold()
        for seed, context in enumerate(ids):
            rig.begin(context, prompt_of(seed, 9), 40)
        await rig.until(lambda: len(rig.machine.requests) == 3)
        rig.worker.let(num_turns)
        await asyncio.sleep(0.05)
        seen = [max(len(rig.tokens(context)) - 9, 0) for context in ids]
        await rig.die_and_return()
        outputs = await asyncio.gather(*[rig.attach(context, 9 + have) for context, have in zip(ids, seen, strict=True)])
        for seed, (output, have) in enumerate(zip(outputs, seen, strict=True)):
            assert output.tokens == oracle(prompt_of(seed, 9), 40)[have:]
            assert output.reason == "length"
            assert (await rig.attach(ids[seed], 0)).tokens == [*prompt_of(seed, 9), *oracle(prompt_of(seed, 9), 40)]


@in_loop
async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.kernel.set_tenant(ADMIN, "lab/ann", 7, Limits(max_contexts=9))
        context = await rig.alloc(labels={"a": "1"})
        await rig.infer(context, prompt_of(1, 20), 10)
        await rig.kernel.set(ANN, SetArgs(context, nice=3, labels={"b": "2", "a": ""}))
        await rig.kernel.truncate(ANN, context, 25)
        asleep = await rig.alloc()
        await rig.kernel.suspend(ANN, asleep)
        freed = await rig.alloc()
        await rig.kernel.free(ANN, freed)
        forgotten = await rig.alloc(durability=Durability.NONE)
        before = {info.id: info for info in rig.kernel.list_contexts(ANN, ListArgs()).items}
        await rig.die_and_return()
        after = {info.id: info for info in rig.kernel.list_contexts(ANN, ListArgs()).items}
        assert set(after) == {context, asleep}
        for context_id, info in after.items():
            old = before[context_id]
            assert (info.state, info.labels, info.nice, info.num_tokens) == (old.state, old.labels, old.nice, old.num_tokens)
        assert after[asleep].state is ContextState.SUSPENDED
        tenant = next(tenant for tenant in rig.kernel.list_tenants(ADMIN, ListArgs()).items if tenant.path == "lab/ann")
        assert (tenant.weight, tenant.limits.max_contexts) == (7, 9)
        with pytest.raises(NotFound):
            rig.kernel.stat(ANN, forgotten)
        past = [*prompt_of(1, 20), *oracle(prompt_of(1, 20), 10)][:25]
        assert (await rig.infer(context, (), 6)).tokens == oracle(past, 6)


@in_loop
async def test_a_request_on_a_model_that_nobody_asked_to_keep_goes_on_too(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        context = await rig.alloc()
        await rig.kernel.unload_model(ADMIN, "m")
        rig.worker.hold()
        rig.begin(context, prompt_of(1, 9), 20)
        await rig.until(lambda: bool(rig.machine.requests))
        await rig.die_and_return()
        assert (await rig.attach(context, 9)).tokens == oracle(prompt_of(1, 9), 20)


@in_loop
async def test_fsync_stays_fsync_after_a_restart(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        context = await rig.alloc(durability=Durability.FSYNC)
        rig.begin(context, prompt_of(1, 9), 30)
        await rig.until(lambda: len(rig.tokens(context)) > 12)
        await rig.die_and_return()
        request = next(iter(rig.machine.requests.values()))
        written = request.log.num_written
        assert request.log.end == 9 + written, "what the disk had is shown at once"
        unsynced: list[int] = []
        while not request.is_finished:
            unsynced.append(9 + request.log.num_written - request.log.end)
            await asyncio.sleep(0)
        assert max(unsynced) > 0, "new tokens wait for the disk"


@in_loop
async def test_logprobs_stay_with_their_tokens_after_a_restart(tmp_path: Path) -> None:
    sampling = Sampling(temperature=0.0, num_logprobs=0)
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        context = await rig.alloc()
        rig.begin(context, prompt_of(1, 9), 30, sampling=sampling)
        await rig.until(lambda: len(rig.tokens(context)) > 12)
        await rig.die_and_return()
        have = len(rig.tokens(context)) - 9
        output = await rig.attach(context, 9)
        assert output.tokens == oracle(prompt_of(1, 9), 30)
        assert len(output.logprobs) == 30 - have


@in_loop
async def test_weights_and_pages_of_a_living_worker_are_used_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=16, host_slabs=64))
    rig.add_model("other", FakeModel(weights_bytes=3000, seed=5))
    async with running(rig):
        await rig.load("other")
        ids = {await rig.alloc(model=model): model for model in ("m", "other", "m")}
        for seed, context in enumerate(ids):
            await rig.infer(context, prompt_of(seed, 40), 8)
        await rig.settle()
        await rig.die_and_return(keeps_worker=True)
        await rig.until(lambda: all(rig.machine.devices.first.models.get(name).is_resident for name in ("m", "other")))
        assert rig.worker is not None
        assert rig.worker.num_loads == 0
        for seed, (context, model) in enumerate(ids.items()):
            language = LANGUAGE if model == "m" else FakeModel(weights_bytes=3000, seed=5)
            told = oracle(prompt_of(seed, 40), 8, language=language)
            output = await rig.infer(context, (), 5)
            assert output.tokens == oracle([*prompt_of(seed, 40), *told], 5, language=language)
            assert output.finished is not None
            assert output.finished.usage.pages_restored >= 10


@in_loop
async def test_weights_that_nobody_wants_any_more_are_forgotten_by_the_worker(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=8))
    other = rig.add_model("other", FakeModel(weights_bytes=3000, seed=5))
    async with running(rig):
        await rig.load("other")
        context = await rig.alloc()
        (other / "fake.json").write_text((other / "fake.json").read_text().replace('"seed": 5', '"seed": 6'))
        await rig.die_and_return(keeps_worker=True)
        await rig.until(lambda: all(rig.machine.devices.first.models.get(name).is_resident for name in ("m", "other")))
        assert rig.worker is not None
        assert (rig.worker.num_loads, rig.worker.num_unloads) == (1, 1)
        assert (await rig.infer(context, prompt_of(1, 9), 9)).tokens == oracle(prompt_of(1, 9), 9)


@in_loop
async def test_pages_are_relabelled_where_space_ids_differ(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Sizes(device_slabs=16, host_slabs=64))
    rig.add_model("first", FakeModel(weights_bytes=3000, seed=5))
    async with running(rig, loads=False):
        await rig.load("first")
        await rig.load("m")
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 40), 8)
        await rig.settle()
        await rig.kernel.remove_model(ADMIN, "first")
        await rig.kernel.unload_model(ADMIN, "m")
        await rig.die_and_return(keeps_worker=True)
        output = await rig.infer(context, (), 5)
        told = oracle(prompt_of(1, 40), 8)
        assert output.tokens == oracle([*prompt_of(1, 40), *told], 5)
        assert output.finished is not None
        assert output.finished.usage.pages_restored >= 10


@in_loop
async def test_counters_and_effects_outlive_the_daemon(tmp_path: Path) -> None:
    from kerneld.calls import AllocArgs
    from tests.kerneld.rig import with_id

    async with running(Rig(tmp_path)) as rig:
        caller = with_id(ANN, "once")
        info = await rig.kernel.alloc(caller, AllocArgs("m"))
        await rig.infer(info.id, prompt_of(1, 9), 9)
        service = rig.machine.scheduler.shares.service("lab/ann")
        await rig.stop()
        await rig.start()
        rig.is_worker_replaced = True
        assert rig.machine.scheduler.shares.service("lab/ann") == service > 0
        assert (await rig.kernel.alloc(caller, AllocArgs("m"))).id == info.id
        assert len(rig.machine.contexts) == 1


def how_it_stands(request: Request) -> tuple[object, ...]:
    """What a restart must not change of a request that runs."""
    paid = (request.is_charged, request.tariff, request.num_prepaid, request.num_charged, request.num_cached)
    return (*paid, request.num_since_admission, request.num_input, request.num_generated)


@in_loop
async def test_the_books_are_exactly_those_of_the_last_write(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        await rig.infer(await rig.alloc(), prompt_of(1, 9), 9)
        for seed in range(6):
            caller = (ANN, BOB)[seed % 2]
            rig.begin(await rig.alloc(caller), prompt_of(seed, 9), 40, caller=caller)
        await rig.until(lambda: sum(request.num_generated for request in rig.machine.requests.values()) > 60)
        rig.worker.hold()
        rig.machine.books.flush()
        before = {request.id: how_it_stands(request) for request in rig.machine.requests.values()}
        books = rig.machine.scheduler.accounts()

        await rig.die_and_return()

        assert {account.path: account.service for account in rig.machine.scheduler.shares.snapshot() if account.service} == {
            account.path: account.service for account in books.shares if account.service
        }
        assert rig.machine.scheduler.accounts().outputs == books.outputs
        assert {request.id: how_it_stands(request) for request in rig.machine.requests.values()} == before
        assert all(request.is_interrupted for request in rig.machine.requests.values())


@in_loop
async def test_one_that_never_ran_is_charged_when_it_is_seated(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        assert rig.worker is not None
        rig.worker.hold()
        first, second = await rig.alloc(), await rig.alloc(BOB)
        rig.begin(first, prompt_of(1, 9), 4)
        rig.begin(second, prompt_of(2, 9), 4, caller=BOB)
        await rig.until(lambda: len(rig.machine.requests) == 2)
        await rig.die_and_return()
        assert not any(request.is_charged for request in rig.machine.requests.values() if request.tenant == "lab/bob")
        await asyncio.gather(rig.attach(first, 9), rig.attach(second, 9, BOB))
        shares = rig.machine.scheduler.shares
        assert min(shares.service("lab/ann"), shares.service("lab/bob")) > 0


@in_loop
async def test_what_contexts_cost_that_are_not_journaled_is_kept_all_the_same(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.infer(await rig.alloc(durability=Durability.NONE), prompt_of(1, 9), 9)
        service = rig.machine.scheduler.shares.service("lab/ann")
        rig.machine.books.flush()
        await rig.die_and_return()
        assert rig.machine.scheduler.shares.service("lab/ann") == service > 0


@in_loop
async def test_a_cancel_before_the_first_token_stays_charged_after_a_restart(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        context = await rig.alloc()
        rig.worker.hold()
        rig.begin(context, prompt_of(1, 200), 9)
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        assert await rig.kernel.cancel(ANN, context)
        charged = rig.machine.scheduler.shares.service("lab/ann")
        assert charged > 0
        await rig.die_and_return()
        assert rig.machine.scheduler.shares.service("lab/ann") == charged


@in_loop
async def test_usage_is_whole_after_a_restart(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        done, going = await rig.alloc(), await rig.alloc()
        await rig.infer(done, prompt_of(1, 20), 5)
        rig.begin(going, prompt_of(2, 30), 40)
        await rig.until(lambda: len(rig.tokens(going)) > 35)
        await rig.die_and_return()
        ends = [(await rig.attach(done, 20)).finished, (await rig.attach(going, 30)).finished]
        assert [(end.usage.input_tokens, end.usage.output_tokens) for end in ends if end is not None] == [(20, 5), (30, 40)]


@pytest.mark.parametrize("kind", [Durability.JOURNAL, Durability.FSYNC])
@in_loop
async def test_what_finished_before_a_restart_reads_as_it_did(tmp_path: Path, kind: Durability) -> None:
    rig = Rig(tmp_path)
    rig.add_tokenizer()
    async with running(rig):
        told = oracle(prompt_of(1, 9), 40)
        plain, stopped, ended, cut = [await rig.alloc(durability=kind) for _ in range(4)]
        ends = Sampling(temperature=0.0, stop_token_ids=(told[11],))
        await asyncio.gather(
            rig.begin(plain, prompt_of(1, 9), 12),
            rig.begin(stopped, prompt_of(1, 9), 40, stop=(f"t{told[9]} t{told[10]}",)),
            rig.begin(ended, prompt_of(1, 9), 40, sampling=ends),
            rig.begin(cut, prompt_of(1, 9), 40),
        )
        await rig.kernel.truncate(ANN, cut, 20)
        before = [await rig.attach(context, offset) for context in (plain, stopped, ended, cut) for offset in (0, 9, 12)]
        await rig.die_and_return()
        for _ in range(2):
            after = [await rig.attach(context, offset) for context in (plain, stopped, ended, cut) for offset in (0, 9, 12)]
            assert [(output.text, output.tokens, output.finished) for output in after] == [
                (output.text, output.tokens, output.finished) for output in before
            ]
        assert f"t{told[10]}" not in before[4].text
        more = await rig.infer(stopped, (), 3)
        assert (await rig.attach(stopped, more.offset)).text == more.text


def watch(rig: Rig, seated: list[str]) -> None:
    """Note the label of every request that is seated from now on; what loads take on this machine is charged to nobody."""
    rig.machine.scheduler.charging.surcharge = lambda _request, _cost: 0

    def heard(event: Event) -> None:
        if isinstance(event, RequestAdmitted):
            seated.append(rig.machine.requests[event.request].context.labels["n"])

    rig.machine.events.subscribe(heard)


async def order_of_seats(rig: Rig, num_requests: int, kills_at: list[int]) -> list[str]:
    """Let three tenants ask for much at once, and the daemon die when so many were seated; the order of first seats."""
    async with running(rig):
        assert rig.worker is not None
        for path, weight in (("lab/ann", 1), ("lab/bob", 3)):
            await rig.kernel.set_tenant(ADMIN, path, weight, Limits())
        rig.worker.hold()
        seated: list[str] = []
        watch(rig, seated)
        for number in range(num_requests):
            caller = (ADMIN, ANN, BOB)[number * 7 % 3]
            context = await rig.alloc(caller, labels={"n": str(number)})
            rig.begin(context, prompt_of(number, 3 + number * 5 % 11), 1 + number * 3 % 8, caller=caller)
            await rig.until(lambda number=number: len(rig.machine.requests) > number)  # type: ignore[misc]
        rig.worker.release()
        for num_seated in kills_at:
            await rig.until(lambda num_seated=num_seated: len(set(seated)) >= num_seated)  # type: ignore[misc]
            await rig.die_and_return()
            watch(rig, seated)
        await rig.until(lambda: not rig.machine.requests)
        return list(dict.fromkeys(seated))


@in_loop
async def test_the_order_of_seats_is_that_of_the_run_that_nobody_killed(tmp_path: Path) -> None:
    """There is one row, so that it depends on the books alone; steps are too few for the prices of this machine to be known."""
    sizes = Sizes(max_rows=1)
    undisturbed = await order_of_seats(Rig(tmp_path / "first", sizes), 24, [])
    assert await order_of_seats(Rig(tmp_path / "second", sizes), 24, [5, 11, 17]) == undisturbed


@in_loop
async def test_a_model_comes_back_by_itself(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        await rig.die_and_return()
        await rig.until(lambda: rig.machine.devices.first.models.get("m").state is ModelState.RESIDENT)


@in_loop
async def test_a_request_whose_model_is_gone_ends_with_an_error(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        assert rig.worker is not None
        ran, waited = await rig.alloc(), await rig.alloc(BOB)
        rig.begin(ran, prompt_of(1, 9), 40)
        rig.begin(waited, prompt_of(2, 9), 40, caller=BOB)
        await rig.until(lambda: len(rig.tokens(ran)) > 14)
        rig.worker.hold()
        await rig.machine.store.remove_model("m", [])

        await rig.die_and_return()

        assert not rig.machine.requests
        assert rig.machine.scheduler.waiting.total == rig.machine.scheduler.running.total == 0
        finished = [context.last_finished for context in rig.machine.contexts]
        assert [item.reason for item in finished if item is not None] == [FinishReason.ERROR] * 2
        await rig.die_and_return()
        assert not rig.machine.requests


@in_loop
async def test_contexts_whose_model_is_gone_fail_and_that_is_told(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.machine.store.remove_model("m", [])

        await rig.die_and_return()

        told = [record async for record in rig.machine.events.follow(0, follow=False)]
        assert [record.facts["context"] for record in told if record.name == "ContextFailed"] == [context]
        assert rig.stat(context).state is ContextState.FAILED


@in_loop
async def test_who_waited_with_what_is_not_kept_was_asleep_since(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=1))) as rig:
        assert rig.worker is not None
        ran, lost = await rig.alloc(), await rig.alloc(BOB, durability=Durability.NONE)
        rig.worker.hold()
        rig.begin(ran, prompt_of(1, 9), 40)
        rig.begin(lost, prompt_of(2, 9), 40, caller=BOB)
        await rig.until(lambda: len(rig.machine.requests) == 2)
        rig.machine.books.flush()

        await rig.die_and_return()

        shares = rig.machine.scheduler.shares
        assert not any(node.keeps_counter for node in shares._tree.own("lab/bob").lineage)
        await rig.until(lambda: not rig.machine.requests)
