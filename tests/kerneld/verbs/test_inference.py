"""Verbs that compute: streams that leave and come back, ends of all kinds, and scores."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drivers.fake_model import links_after, logprob
from kerneld.calls import ChatInput, Delta, Durability, InferArgs, ScoreArgs, TextInput, TokenInput
from kerneld.errors import Draining, InvalidArgument, OutOfRange, WrongState
from memory.page import Tier
from tests.kerneld.conftest import FakeClock
from tests.kerneld.rig import ANN, GREEDY, LANGUAGE, Rig, Sizes, in_loop, oracle, prompt_of, read_all, running


@pytest.mark.parametrize("offset", [0, 5, 13, 14, 15, 30, 53])
@in_loop
async def test_attach_reads_on_from_any_offset_while_it_runs_and_afterwards(tmp_path: Path, offset: int) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        task = rig.begin(context, prompt_of(1, 14), 40)
        await rig.until(lambda: len(rig.tokens(context)) >= max(offset, 14))
        during = await rig.attach(context, offset)
        await task
        after = await rig.attach(context, offset)
        everything = [*prompt_of(1, 14), *oracle(prompt_of(1, 14), 40)]
        assert during.tokens == after.tokens == everything[offset:]
        assert during.reason == after.reason == "length"


@in_loop
async def test_a_reader_may_leave_and_come_back_within_the_grace(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        call = InferArgs(context, TokenInput(prompt_of(1, 9)), 40, GREEDY, True, ignore_eos=True, detach_grace_s=60.0)
        stream = rig.kernel.infer(ANN, call)
        seen: list[int] = []
        async for event in stream:
            if isinstance(event, Delta):
                seen += event.tokens
                if len(seen) > 4:
                    break
        await stream.aclose()  # type: ignore[attr-defined]
        rest = await rig.attach(context, 9 + len(seen))
        assert seen + rest.tokens == oracle(prompt_of(1, 9), 40)


@in_loop
async def test_without_a_grace_a_request_ends_with_its_reader(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        for kind in Durability:
            context = await rig.alloc(durability=kind)
            call = InferArgs(context, TokenInput(prompt_of(1, 9)), 500, GREEDY, True, ignore_eos=True, detach_grace_s=0.0)
            stream = rig.kernel.infer(ANN, call)
            async for event in stream:
                if isinstance(event, Delta):
                    break
            await stream.aclose()  # type: ignore[attr-defined]
            assert not rig.machine.requests
            assert (await rig.attach(context, 0)).reason == "cancelled"
            told = rig.tokens(context)[9:]
            assert told == oracle(prompt_of(1, 9), len(told))


@in_loop
async def test_a_reader_that_leaves_before_its_first_event_counts_as_gone(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 9), 2)
        task = rig.begin(context, prompt_of(2, 9), 900, detach_grace_s=0.0)
        await rig.until(lambda: len(rig.tokens(context)) > 22)
        stream = rig.kernel.attach(ANN, context, 0)
        await anext(stream)
        await stream.aclose()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not rig.machine.requests


@in_loop
async def test_a_deserted_request_ends_when_the_grace_is_over(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(Rig(tmp_path, clock=clock)) as rig:
        assert rig.worker is not None
        context = await rig.alloc()
        rig.worker.hold()
        task = rig.begin(context, prompt_of(1, 9), 40, detach_grace_s=5.0)
        await rig.until(lambda: bool(rig.machine.requests))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        clock.advance(4.9)
        await asyncio.sleep(0.3)
        assert rig.machine.requests
        clock.advance(0.2)
        await rig.until(lambda: not rig.machine.requests)
        rig.worker.release()


@in_loop
async def test_a_deadline_ends_a_request_wherever_it_is(tmp_path: Path) -> None:
    clock = FakeClock()
    async with running(Rig(tmp_path, Sizes(max_rows=1), clock=clock)) as rig:
        assert rig.worker is not None
        first, second = await rig.alloc(), await rig.alloc()
        rig.worker.hold()
        tasks = [rig.begin(context, prompt_of(1, 9), 40, deadline_s=3.0) for context in (first, second)]
        await rig.until(lambda: len(rig.machine.requests) == 2)
        clock.advance(3.1)
        assert [(await task).reason for task in tasks] == ["deadline", "deadline"]
        rig.worker.release()
        assert (await rig.infer(first, (), 3)).tokens == oracle(prompt_of(1, 9), 3)


@in_loop
async def test_a_cancel_takes_effect_within_the_step_at_hand(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        worker = rig.worker
        context, other = await rig.alloc(), await rig.alloc()
        task, beside = rig.begin(context, prompt_of(1, 9), 500), rig.begin(other, prompt_of(2, 9), 60)
        await rig.until(lambda: bool(worker.plans) and worker.plans[-1].num_steps == 8)
        have = len(rig.tokens(context))
        assert await rig.kernel.cancel(ANN, context)
        assert (await task).reason == "cancelled"
        assert len(rig.tokens(context)) == have
        assert not await rig.kernel.cancel(ANN, context)
        assert (await beside).tokens == oracle(prompt_of(2, 9), 60)
        assert (await rig.infer(context, (), 5)).tokens == oracle([*prompt_of(1, 9), *oracle(prompt_of(1, 9), have - 9)], 5)


@in_loop
async def test_a_context_runs_one_request_at_a_time(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        task = rig.begin(context, prompt_of(1, 9), 40)
        await rig.until(lambda: bool(rig.machine.requests))
        with pytest.raises(WrongState):
            await rig.infer(context, prompt_of(2, 3), 3)
        assert (await task).tokens == oracle(prompt_of(1, 9), 40)


@in_loop
async def test_an_input_that_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        for given in (TextInput("text without a tokenizer"), ChatInput((("user", "hi"),)), TokenInput((5000,)), TokenInput(()), None):
            with pytest.raises(InvalidArgument):
                await read_all(rig.kernel.infer(ANN, InferArgs(context, given, 5, GREEDY)))
        assert rig.tokens(context) == []
        assert not rig.machine.requests


@in_loop
async def test_a_draining_daemon_lets_requests_end_and_takes_no_more(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, drain_timeout_s=20.0)) as rig:
        context = await rig.alloc()
        task = rig.begin(context, prompt_of(1, 9), 60)
        await rig.until(lambda: bool(rig.machine.requests))
        rig.machine.is_draining = True
        for call in (rig.infer(await rig.alloc(), prompt_of(2, 3), 3), rig.kernel.score(ANN, ScoreArgs(context, TokenInput((5,))))):
            with pytest.raises(Draining):
                await call
        assert (await task).tokens == oracle(prompt_of(1, 9), 60)


# ------------------------------------------------------------------------------------------------------------------------------- score


def expected_score(past: list[int], tokens: tuple[int, ...]) -> list[float]:
    links = links_after(LANGUAGE.root, [*past, *tokens], 0)
    return [logprob(LANGUAGE, links[len(past) + idx - 1], token, 0).logprob for idx, token in enumerate(tokens)]


@pytest.mark.parametrize("num_tokens", [1, 3, 17, 150])
@in_loop
async def test_a_score_tells_what_the_model_thinks_and_leaves_the_context_as_it_was(tmp_path: Path, num_tokens: int) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 21), 8)
        before = rig.tokens(context)
        score = await rig.kernel.score(ANN, ScoreArgs(context, TokenInput(prompt_of(7, num_tokens))))
        assert [item.logprob for item in score.logprobs] == expected_score(before, prompt_of(7, num_tokens))
        assert rig.tokens(context) == before
        assert (await rig.infer(context, (), 5)).tokens == oracle(before, 5)
        rig.check()


@in_loop
async def test_scores_run_beside_the_request_of_their_context(tmp_path: Path) -> None:
    async with running(Rig(tmp_path, Sizes(max_rows=4))) as rig:
        context = await rig.alloc()
        task = rig.begin(context, prompt_of(1, 9), 60)
        await rig.until(lambda: len(rig.tokens(context)) > 20)
        calls = [rig.begin_score(context, prompt_of(seed, 9)) for seed in range(6)]
        await asyncio.sleep(0)  # they take the context as it is now
        past = rig.tokens(context)
        for seed, score in enumerate(await asyncio.gather(*calls)):
            assert [item.logprob for item in score.logprobs] == expected_score(past, prompt_of(seed, 9))
        assert (await task).tokens == oracle(prompt_of(1, 9), 60)


@in_loop
async def test_a_score_whose_caller_leaves_is_forgotten_at_once(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        assert rig.worker is not None
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 21), 8)
        await rig.settle()
        held = rig.machine.devices.first.pager.ledger.used("lab/ann", Tier.DEVICE)
        rig.worker.hold()
        score = rig.begin_score(context, prompt_of(2, 150))
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        rig.worker.let(2)
        await asyncio.sleep(0.01)
        score.cancel()
        await asyncio.gather(score, return_exceptions=True)
        rig.worker.release()
        await rig.settle()
        assert not rig.machine.requests
        assert rig.machine.devices.first.pager.ledger.used("lab/ann", Tier.DEVICE) == held
        assert (await rig.infer(context, (), 5)).tokens == oracle(rig.tokens(context)[:29], 5)


@in_loop
async def test_a_score_survives_its_worker(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with running(rig):
        assert rig.worker is not None
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 21), 8)
        past = rig.tokens(context)
        await rig.settle()
        rig.worker.hold()
        score = rig.begin_score(context, prompt_of(2, 150))
        await rig.until(lambda: rig.machine.scheduler.running.total == 1)
        rig.worker.let(3)
        await asyncio.sleep(0.01)
        rig.worker.die()
        assert [item.logprob for item in (await score).logprobs] == expected_score(past, prompt_of(2, 150))


@in_loop
async def test_a_score_that_cannot_be_is_refused(tmp_path: Path) -> None:
    async with running(Rig(tmp_path)) as rig:
        context = await rig.alloc()
        with pytest.raises(InvalidArgument):
            await rig.kernel.score(ANN, ScoreArgs(context, TokenInput((5,))))
        with pytest.raises(InvalidArgument):
            await rig.kernel.score(ANN, ScoreArgs(context, TokenInput((5, 6)), top=1000))
        with pytest.raises(OutOfRange):
            await rig.kernel.score(ANN, ScoreArgs(context, TokenInput(prompt_of(1, 1100))))
        assert [item.logprob for item in (await rig.kernel.score(ANN, ScoreArgs(context, TokenInput((5, 6))))).logprobs] == expected_score(
            [5], (6,)
        )
