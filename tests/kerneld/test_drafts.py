"""Requests that guess ahead: the same tokens, fewer steps, and accounts that tell guesses from output."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drivers.contract import Sampling
from drivers.fake_script import DRAFT_BYTES
from kerneld.calls import CheckpointArgs, Durability, ForkArgs
from kerneld.errors import InvalidArgument, NotFound, OutOfRange, WrongState
from tests.kerneld.rig import ADMIN, ANN, BOB, LANGUAGE, PAGE_TOKENS, Rig, Sizes, in_loop, oracle, prompt_of, running

DRAFTS = Sampling(temperature=0.0, draft_tokens=4)


def new_rig(folder: Path, hits: int = 2, **sizes: int) -> Rig:
    rig = Rig(folder, Sizes(**sizes))
    rig.options = {"draft_hits": str(hits)}
    return rig


@pytest.mark.parametrize("hits", [0, 1, 4])
@pytest.mark.parametrize("sampling", [DRAFTS, Sampling(temperature=1.0, seed=3, draft_tokens=3)])
@in_loop
async def test_the_output_is_the_same(tmp_path: Path, hits: int, sampling: Sampling) -> None:
    async with running(new_rig(tmp_path, hits)) as rig:
        context = await rig.alloc()

        output = await rig.infer(context, prompt_of(1, 30), 100, sampling=sampling)

        assert output.tokens == oracle(prompt_of(1, 30), 100, sampling)
        assert rig.tokens(context) == [*prompt_of(1, 30), *output.tokens]
        again = await rig.infer(context, prompt_of(2, 3), 1)
        assert again.finished is not None
        assert again.finished.usage.cached_tokens == 129, "of all but the last token"
        assert len(rig.workers) == 1, "no plan was refused"


@in_loop
async def test_who_guesses_is_told_all_tokens_of_the_context(tmp_path: Path) -> None:
    async with running(new_rig(tmp_path)) as rig:
        assert rig.worker is not None
        context = await rig.alloc()
        await rig.infer(context, prompt_of(1, 9), 20, sampling=DRAFTS)
        past = rig.tokens(context)

        await rig.infer(context, prompt_of(2, 3), 5, sampling=DRAFTS)

        [start] = [start for plan in rig.worker.plans for start in plan.starts][1:]
        assert [*start.history, *start.tokens] == [*past, *prompt_of(2, 3)]


@in_loop
async def test_the_usage_tells_guesses_and_those_that_were_right(tmp_path: Path) -> None:
    async with running(new_rig(tmp_path, 2)) as rig:
        output = await rig.infer(await rig.alloc(), prompt_of(1, 9), 60, sampling=DRAFTS)

        assert output.finished is not None
        usage = output.finished.usage
        assert usage.output_tokens == 60
        assert 60 / 3 <= usage.accepted_tokens < 60
        assert usage.accepted_tokens < usage.drafted_tokens <= 2 * usage.accepted_tokens


@in_loop
async def test_guesses_computed_in_vain_are_charged_as_input(tmp_path: Path) -> None:
    async with running(new_rig(tmp_path, 1)) as rig:
        scheduler = rig.machine.scheduler
        scheduler.charging.surcharge = lambda _request, _cost: 0  # what the load took on this machine
        output = await rig.infer(await rig.alloc(), prompt_of(1, 9), 60, sampling=DRAFTS)

        assert output.finished is not None
        usage = output.finished.usage
        num_rejected = usage.drafted_tokens - usage.accepted_tokens
        assert num_rejected
        assert scheduler.shares.service("lab/ann") == 9 * 10 + 60 * 20 + num_rejected * 10


@in_loop
async def test_rows_that_guess_and_rows_that_do_not_run_side_by_side(tmp_path: Path) -> None:
    async with running(new_rig(tmp_path, 3, device_slabs=12)) as rig:
        contexts = [await rig.alloc((ANN, BOB)[idx % 2]) for idx in range(6)]
        runs = [
            rig.begin(
                context, prompt_of(idx, 20 + idx), 40, caller=(ANN, BOB)[idx % 2], sampling=DRAFTS if idx % 3 else Sampling(temperature=0.0)
            )
            for idx, context in enumerate(contexts)
        ]

        outputs = await asyncio.gather(*runs)

        assert [output.tokens for output in outputs] == [oracle(prompt_of(idx, 20 + idx), 40) for idx in range(6)]
        assert len(rig.workers) == 1, "no plan was refused"


@in_loop
async def test_a_worker_that_dies_amid_guesses_changes_nothing(tmp_path: Path) -> None:
    rig = new_rig(tmp_path, 3)
    async with running(rig):
        context = await rig.alloc(durability=Durability.JOURNAL)
        run = rig.begin(context, prompt_of(1, 9), 300, sampling=DRAFTS)
        await rig.until(lambda: len(rig.tokens(context)) > 60)
        assert rig.worker is not None
        rig.worker.die()

        assert (await run).tokens == oracle(prompt_of(1, 9), 300)


@pytest.mark.parametrize(
    ("draft_model", "draft_tokens", "error"), [("m", 0, InvalidArgument), ("m", 4, InvalidArgument), ("nobody", 4, NotFound)]
)
@in_loop
async def test_a_model_that_cannot_guess_is_refused(tmp_path: Path, draft_model: str, draft_tokens: int, error: type[Exception]) -> None:
    async with running(new_rig(tmp_path)) as rig:
        context = await rig.alloc()

        with pytest.raises(error):
            await rig.infer(context, prompt_of(1, 9), 5, sampling=Sampling(draft_tokens=draft_tokens), draft_model=draft_model)

        assert rig.tokens(context) == []


@in_loop
async def test_a_model_that_is_not_on_the_device_does_not_guess(tmp_path: Path) -> None:
    rig = new_rig(tmp_path)
    async with running(rig):
        rig.add_model("small", LANGUAGE)
        await rig.load("small")
        await rig.kernel.unload_model(ADMIN, "small")

        with pytest.raises(WrongState, match="load it first"):
            await rig.infer(await rig.alloc(), prompt_of(1, 9), 5, sampling=DRAFTS, draft_model="small")


@in_loop
async def test_what_a_model_has_to_guess_on_is_in_the_ledger_as_long_as_it_is_there(tmp_path: Path) -> None:
    rig = new_rig(tmp_path)

    def workspace() -> int:
        [of_models] = [each for each in rig.kernel.read_memory(ADMIN).accounts if (each.owner, each.tier) == ("models", "device")]
        return of_models.kinds.get("workspace", 0)

    async with running(rig):
        rig.add_model("small", LANGUAGE)
        await rig.load("small")
        context = await rig.alloc()
        before = workspace()
        await rig.infer(context, prompt_of(1, 9), 20, sampling=DRAFTS, draft_model="small")
        while_there = workspace()
        await rig.kernel.unload_model(ADMIN, "small")
        assert (before, while_there, workspace()) == (0, DRAFT_BYTES, 0)

        await rig.load("small")
        assert workspace() == 0, "it has guessed nothing yet"
        await rig.infer(context, prompt_of(2, 9), 20, sampling=DRAFTS, draft_model="small")
        rig.check()
        assert rig.worker is not None
        rig.worker.die()
        await rig.load("small")
        assert workspace() == 0, "the new worker has none"


@in_loop
async def test_nothing_behind_a_stop_string_is_kept(tmp_path: Path) -> None:
    rig = new_rig(tmp_path, 4)
    rig.add_tokenizer()
    expected = oracle(prompt_of(1, 9), 40)
    async with running(rig):
        context = await rig.alloc()

        output = await rig.infer(context, prompt_of(1, 9), 40, sampling=DRAFTS, stop=(f" t{expected[17]} ",))

        assert output.reason == "stop"
        assert rig.tokens(context) == [*prompt_of(1, 9), *expected[: len(output.tokens)]]
        assert 17 <= len(output.tokens) <= 19
        kept = rig.tokens(context)
        await rig.die_and_return()
        assert rig.tokens(context) == kept


@pytest.mark.parametrize("hits", [1, 4])
@in_loop
async def test_what_was_guessed_behind_a_stop_string_is_in_no_page_that_goes_on(tmp_path: Path, hits: int) -> None:
    rig = new_rig(tmp_path, hits)
    rig.add_tokenizer()
    given = prompt_of(1, 9)
    expected = oracle(given, 60)
    async with running(rig):
        for at in range(20, 20 + 2 * PAGE_TOKENS):  # the stop falls on every place of a page, and of a run of guesses
            context = await rig.alloc()
            output = await rig.infer(context, given, 60, sampling=DRAFTS, stop=(f" t{expected[at]} ",))
            past = rig.tokens(context)
            assert past == [*given, *expected[: len(past) - len(given)]]
            assert output.tokens == past[len(given) :]
            image = await rig.kernel.checkpoint(ANN, CheckpointArgs(context))
            await rig.kernel.suspend(ANN, context)
            child = (await rig.kernel.fork(ANN, ForkArgs(context))).id
            twin = (await rig.kernel.restore(ANN, image.id, {})).context.id
            await rig.kernel.resume(ANN, context)
            for each, seed in ((context, 5), (child, 6), (twin, 7)):
                more = prompt_of(seed, 3)
                assert (await rig.infer(each, more, 9, sampling=DRAFTS)).tokens == oracle([*past, *more], 9)
        assert len(rig.workers) == 1, "no plan was refused"


@in_loop
async def test_a_stop_token_among_guesses_ends_the_output_there(tmp_path: Path) -> None:
    given = prompt_of(1, 9)
    expected = oracle(given, 40)
    async with running(new_rig(tmp_path, 4)) as rig:
        for at in range(15, 20):
            context = await rig.alloc()
            sampling = Sampling(temperature=0.0, draft_tokens=4, stop_token_ids=(expected[at],))
            output = await rig.infer(context, given, 40, sampling=sampling, ignore_eos=False)
            assert (output.reason, output.tokens) == ("stop", expected[: expected.index(expected[at]) + 1])
            assert (await rig.infer(context, (), 5, sampling=DRAFTS)).tokens == oracle([*given, *output.tokens], 5)


@in_loop
async def test_a_stop_string_counts_though_a_stop_token_was_guessed_behind_it(tmp_path: Path) -> None:
    rig = new_rig(tmp_path, 4)
    rig.add_tokenizer()
    given = prompt_of(1, 9)
    expected = oracle(given, 40)
    async with running(rig):
        plain = await rig.infer(await rig.alloc(), given, 40)
        for at in range(20, 25):
            context = await rig.alloc()
            sampling = Sampling(temperature=0.0, num_logprobs=1, draft_tokens=4, stop_token_ids=(expected[at + 2],))
            output = await rig.infer(context, given, 40, sampling=sampling, stop=(f"t{expected[at]} ",), ignore_eos=False)
            assert output.reason == "stop"
            assert output.text == plain.text[: plain.text.index(f"t{expected[at]} ")]
            assert len(output.logprobs) == len(output.tokens)


@in_loop
async def test_no_token_comes_behind_the_last_that_was_asked_for(tmp_path: Path) -> None:
    given = prompt_of(1, 9)
    async with running(new_rig(tmp_path, 4)) as rig:
        for max_tokens in range(1, 14):
            context = await rig.alloc()
            output = await rig.infer(context, given, max_tokens, sampling=DRAFTS)
            assert (output.reason, output.tokens) == ("length", oracle(given, max_tokens))
            assert (await rig.infer(context, (), 5, sampling=DRAFTS)).tokens == oracle([*given, *output.tokens], 5)
        assert len(rig.workers) == 1, "no plan was refused"


@pytest.mark.parametrize("limit", range(16, 16 + PAGE_TOKENS))
@in_loop
async def test_a_context_is_filled_to_its_limit_and_no_further(tmp_path: Path, limit: int) -> None:
    async with running(new_rig(tmp_path, 4)) as rig:
        context = await rig.alloc(max_tokens=limit)

        output = await rig.infer(context, prompt_of(1, 9), 100, sampling=DRAFTS)

        assert output.tokens == oracle(prompt_of(1, 9), limit - 9)
        with pytest.raises(OutOfRange):
            await rig.infer(context, (), 1, sampling=DRAFTS)


@in_loop
async def test_each_token_of_a_step_has_its_own_logprob(tmp_path: Path) -> None:
    sampling = Sampling(temperature=1.0, seed=3, num_logprobs=1)
    async with running(new_rig(tmp_path, 3)) as rig:
        plain = await rig.infer(await rig.alloc(), prompt_of(1, 9), 30, sampling=sampling)

        guessed = await rig.infer(
            await rig.alloc(), prompt_of(1, 9), 30, sampling=Sampling(temperature=1.0, seed=3, num_logprobs=1, draft_tokens=4)
        )

        assert guessed.tokens == plain.tokens
        assert guessed.logprobs == plain.logprobs
        assert len(guessed.logprobs) == 30


@pytest.mark.parametrize("durability", [Durability.NONE, Durability.JOURNAL, Durability.FSYNC])
@in_loop
async def test_forks_and_cancels_amid_guesses_leave_whole_pasts(tmp_path: Path, durability: Durability) -> None:
    rig = new_rig(tmp_path, 3)
    rig.script.lead = 3
    given = prompt_of(1, 14)
    async with running(rig):
        for num_turns in (1, 4, 9, 17, 22):
            parent = await rig.alloc(durability=durability)
            task = rig.begin(parent, given, 400, sampling=DRAFTS)
            await rig.until(lambda parent=parent, num=num_turns: len(rig.tokens(parent)) >= 14 + num)  # type: ignore[misc]
            child = (await rig.kernel.fork(ANN, ForkArgs(parent))).id
            past = rig.tokens(child)
            assert past == [*given, *oracle(given, len(past) - 14)]
            await rig.kernel.cancel(ANN, parent)
            output = await task
            left = rig.tokens(parent)
            assert (output.reason, left) == ("cancelled", [*given, *output.tokens])
            for each, tokens in ((child, past), (parent, left)):
                more = prompt_of(num_turns, 3)
                assert (await rig.infer(each, more, 12, sampling=DRAFTS)).tokens == oracle([*tokens, *more], 12)
        assert len(rig.workers) == 1, "no plan was refused"


@pytest.mark.parametrize("durability", [Durability.JOURNAL, Durability.FSYNC])
@pytest.mark.parametrize("keeps_worker", [False, True])
@in_loop
async def test_a_daemon_that_dies_amid_guesses_goes_on_where_its_journal_ends(
    tmp_path: Path, durability: Durability, keeps_worker: bool
) -> None:
    rig = new_rig(tmp_path, 3)
    given = prompt_of(1, 9)
    async with running(rig):
        context = await rig.alloc(durability=durability)
        rig.begin(context, given, 200, sampling=DRAFTS)
        await rig.until(lambda: len(rig.tokens(context)) > 60)

        await rig.die_and_return(keeps_worker=keeps_worker)

        assert (await rig.attach(context, 9)).tokens == oracle(given, 200)


@in_loop
async def test_a_request_whose_guessing_model_is_gone_after_a_restart_goes_on_without_it(tmp_path: Path) -> None:
    rig = new_rig(tmp_path, 2)
    given = prompt_of(1, 9)
    async with running(rig):
        rig.add_model("small", LANGUAGE)
        await rig.load("small")
        context = await rig.alloc()
        rig.begin(context, given, 300, sampling=DRAFTS, draft_model="small")
        await rig.until(lambda: len(rig.tokens(context)) > 40)
        await rig.kernel.unload_model(ADMIN, "small")
        await rig.kernel.remove_model(ADMIN, "small")

        await rig.die_and_return()

        assert (await rig.attach(context, 9)).tokens == oracle(given, 300)
