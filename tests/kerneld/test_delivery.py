"""From a step's result to its readers: journal first, and nothing shown that was not made durable."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from drivers.contract import Sampling
from drivers.fake_model import FakeModel
from kerneld.calls import Durability, FinishReason
from kerneld.events import Event, FirstTokenSampled, RequestFinished
from kerneld.state.journal import Journal
from kerneld.state.replay import LogState
from tests.kerneld.rig import ANN, GREEDY, LANGUAGE, Rig, in_loop, oracle, prompt_of, running
from tests.kerneld.small_disk import full_disk


def journaled(rig: Rig) -> LogState:
    """What the journal holds at this moment, read from a copy of it."""
    copy = rig.folder / "journal copy"
    shutil.copytree(rig.state / "journal", copy)
    journal = Journal(copy)
    state = LogState.fold(journal.replay())
    journal.close()
    shutil.rmtree(copy)
    return state


@in_loop
async def test_a_stop_string_ends_the_output_and_no_token_after_it_is_journaled(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.add_tokenizer()
    rig.script.lead = 8
    async with running(rig):
        told = oracle(prompt_of(1, 9), 40)
        ids = [await rig.alloc() for _ in range(3)]
        outputs = await asyncio.gather(
            *[rig.begin(context, prompt_of(1, 9), 40, stop=(f"t{told[cut]}",)) for cut, context in enumerate(ids, 17)]
        )
        for cut, (context, output) in enumerate(zip(ids, outputs, strict=True), 17):
            end = told.index(told[cut]) + 1
            assert (output.reason, output.tokens) == ("stop", told[:end])
            assert f"t{told[cut]}" not in output.text
            assert rig.tokens(context) == [*prompt_of(1, 9), *told[:end]]
            assert (await rig.infer(context, (), 3)).tokens == oracle(rig.tokens(context)[: 9 + end], 3)


@in_loop
async def test_a_stop_token_is_kept_and_ends_the_output(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        told = oracle(prompt_of(2, 9), 30)
        stop = Sampling(temperature=0.0, stop_token_ids=(told[11],))
        output = await rig.infer(await rig.alloc(), prompt_of(2, 9), 30, sampling=stop)
        assert (output.reason, output.tokens) == ("stop", told[: told.index(told[11]) + 1])


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 8, 9])
@in_loop
async def test_exactly_as_many_tokens_come_as_were_asked_for(tmp_path: Path, max_tokens: int) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        assert (await rig.infer(context, prompt_of(1, 4), max_tokens)).tokens == oracle(prompt_of(1, 4), max_tokens)
        assert len(rig.tokens(context)) == 4 + max_tokens


@in_loop
async def test_a_context_is_filled_to_its_last_position(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(max_tokens=20)
        output = await rig.infer(context, prompt_of(1, 9), 50)
        assert output.tokens == oracle(prompt_of(1, 9), 11)
        assert output.reason == "length"


@pytest.mark.parametrize("kind", list(Durability))
@in_loop
async def test_every_durability_says_the_same(tmp_path: Path, kind: Durability) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(durability=kind)
        assert (await rig.infer(context, prompt_of(1, 9), 30)).tokens == oracle(prompt_of(1, 9), 30)


@in_loop
async def test_a_token_is_in_the_journal_when_a_reader_sees_it(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        seen: list[int] = []

        async def look() -> None:
            async for event in rig.kernel.attach(ANN, context, 9):
                tokens = getattr(event, "tokens", ())
                seen.extend(tokens)
                if tokens:
                    written = next(iter(journaled(rig).contexts.values())).tokens.tolist()
                    assert written[9 : 9 + len(seen)] == seen

        task = rig.begin(context, prompt_of(1, 9), 4)
        await rig.until(lambda: bool(rig.machine.requests))
        await look()
        assert (await task).tokens == seen == oracle(prompt_of(1, 9), 4)


@in_loop
async def test_fsync_shows_and_reads_nothing_before_the_disk_has_it(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc(durability=Durability.FSYNC)
        task = rig.begin(context, prompt_of(1, 9), 30)
        held = 0
        while not task.done():
            known = rig.machine.contexts.find(context)
            request = next(iter(rig.machine.requests.values()), None)
            if known is not None and request is not None:
                held = max(held, known.num_tokens - rig.machine.num_visible(known))
                assert len((await rig.kernel.read(ANN, context, 0, 0)).tokens) <= max(request.log.end, 9)
            await asyncio.sleep(0)
        assert held > 0
        assert (await task).tokens == oracle(prompt_of(1, 9), 30)


@in_loop
async def test_a_disk_that_takes_no_more_ends_requests_and_shows_nothing_unwritten(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        kinds = [Durability.JOURNAL, Durability.FSYNC, Durability.NONE]
        ids = [await rig.alloc(durability=kind) for kind in kinds]
        tasks = [rig.begin(context, prompt_of(seed, 9), 60) for seed, context in enumerate(ids)]
        await rig.until(lambda: all(len(rig.tokens(context)) > 14 for context in ids))
        with full_disk():
            await rig.until(lambda: len(rig.machine.requests) == 1)
        outputs = [await task for task in tasks]
        for seed, (kind, output) in enumerate(zip(kinds, outputs, strict=True)):
            told = oracle(prompt_of(seed, 9), 60)
            assert output.tokens == told[: len(output.tokens)]
            assert output.reason == ("length" if kind is Durability.NONE else "error")
        # The disk is well again: contexts go on, and the log tells the same story.
        again = await rig.infer(ids[0], (), 5)
        assert again.tokens == oracle(rig.tokens(ids[0])[:-5], 5)
        before = {context: rig.tokens(context) for context in ids[:2]}
        await rig.die_and_return()
        assert {context: rig.tokens(context) for context in ids[:2]} == before
        assert not rig.machine.requests


@in_loop
async def test_tokens_are_journaled_with_what_they_cost_and_ends_with_what_is_given_back(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        checked: list[str] = []

        def heard(event: Event) -> None:
            if isinstance(event, FirstTokenSampled | RequestFinished):
                kept = {account.path: account.service for account in journaled(rig).accounts.shares}
                assert kept["lab/ann"] == rig.machine.scheduler.shares.service("lab/ann") > 0
                checked.append(event.request)

        rig.machine.events.subscribe(heard)
        contexts = [await rig.alloc() for _ in range(4)]
        for _ in range(2):  # the second time their output is paid for ahead
            await asyncio.gather(*[rig.begin(context, prompt_of(seed, 9), 5 + seed) for seed, context in enumerate(contexts)])
        assert len(checked) == 16


@in_loop
async def test_an_end_that_could_not_be_written_goes_in_front_of_what_follows(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        context = await rig.alloc()
        task = rig.begin(context, prompt_of(1, 9), 60)
        await rig.until(lambda: len(rig.tokens(context)) > 14)
        with full_disk():
            assert await rig.kernel.cancel(ANN, context)
        assert (await task).reason == FinishReason.CANCELLED.value
        await rig.kernel.truncate(ANN, context, 10)
        await rig.infer(context, (), 3)
        state = journaled(rig)
        assert not state.active
        assert len(next(iter(state.contexts.values())).tokens) == 13


@in_loop
async def test_penalties_bring_the_whole_history_along(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 30), 5)
        await rig.infer(context, prompt_of(2, 3), 5, sampling=Sampling(temperature=0.0, repetition_penalty=1.2))
        start = rig.worker.plans[-1].starts or next(plan.starts for plan in reversed(rig.worker.plans) if plan.starts)
        assert start[0].history == tuple(rig.tokens(context)[: start[0].position])
        assert start[0].output_start == 38


@in_loop
async def test_log_probabilities_come_with_every_token(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        output = await rig.infer(await rig.alloc(), prompt_of(1, 9), 12, sampling=Sampling(temperature=0.0, num_logprobs=2))
        assert output.logprobs == [-0.5] * 12


@in_loop
async def test_another_language_says_something_else(tmp_path: Path) -> None:
    other = FakeModel(weights_bytes=3000, seed=9)
    rig = Rig(tmp_path)
    rig.add_model("other", other)
    async with running(rig):
        await rig.load("other")
        first, second = await rig.alloc(), await rig.alloc(model="other")
        outputs = await asyncio.gather(rig.begin(first, prompt_of(1, 9), 20), rig.begin(second, prompt_of(1, 9), 20))
        assert outputs[0].tokens == oracle(prompt_of(1, 9), 20, GREEDY, LANGUAGE)
        assert outputs[1].tokens == oracle(prompt_of(1, 9), 20, GREEDY, other)
