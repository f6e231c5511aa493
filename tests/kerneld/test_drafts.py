"""Requests that guess ahead: the same tokens, fewer steps, and accounts that tell guesses from output."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drivers.contract import Sampling
from kerneld.calls import Durability
from kerneld.errors import InvalidArgument, NotFound, WrongState
from tests.kerneld.rig import ADMIN, ANN, BOB, LANGUAGE, Rig, Sizes, in_loop, oracle, prompt_of, running

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
