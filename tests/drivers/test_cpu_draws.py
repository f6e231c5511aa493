"""What rows draw on the CPU driver: natively as in torch, whoever else is in the step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from drivers.contract import RowResult, RowStart, Sampling
from tests.drivers.cpu_rig import GREEDY, CpuRig, prompt_of, save_model

IN_TORCH = {"disagree": "native.head_sample"}
MANY = (
    GREEDY,
    Sampling(seed=1),
    Sampling(seed=2, temperature=0.7, top_p=0.9, num_logprobs=2),
    Sampling(seed=3, top_k=20, min_p=0.02, repetition_penalty=1.3, presence_penalty=0.4),
    Sampling(temperature=0.0, frequency_penalty=0.8, num_logprobs=0),
)


@pytest.fixture(scope="module", params=["Llama", "Gemma2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model; Gemma's logits are capped."""
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, request.param)
    return directory


def drawn(rig: CpuRig, settings: Sequence[Sampling], num_steps: int = 12) -> list[list[RowResult]]:
    """What each row answers, step by step, all rows together."""
    starts = [rig.start(slot, prompt_of(9 + slot, slot), one, num_steps + 1) for slot, one in enumerate(settings)]
    steps = rig.run([(slot, len(start.tokens)) for slot, start in enumerate(starts)], num_steps, starts)
    rig.run([], 0, clears=range(len(settings)))
    return [[step[slot] for step in steps] for slot in range(len(settings))]


def tokens_of(results: Sequence[RowResult]) -> list[int]:
    return [token for result in results for token in result.tokens]


def test_native_draws_are_those_of_torch(model: Path) -> None:
    native, plain = CpuRig(model), CpuRig(model, options=IN_TORCH)

    found, expected = drawn(native, MANY), drawn(plain, MANY)

    assert [tokens_of(results) for results in found] == [tokens_of(results) for results in expected]
    for one, other in zip([r for row in found for r in row], [r for row in expected for r in row], strict=True):
        assert [each.logprob for each in one.logprobs] == pytest.approx([each.logprob for each in other.logprobs], abs=1e-5)
        assert [[token for token, _ in each.top] for each in one.logprobs] == [[token for token, _ in each.top] for each in other.logprobs]
    native.driver.close()
    plain.driver.close()


def test_a_row_draws_alone_what_it_draws_among_others(model: Path) -> None:
    rig = CpuRig(model)
    together = drawn(rig, MANY)
    for slot, sampling in enumerate(MANY):
        start = rig.start(0, prompt_of(9 + slot, slot), sampling, 13)
        alone = [step[0] for step in rig.run([(0, 9 + slot)], 12, [start])]
        rig.run([], 0, clears=(0,))
        assert [(one.tokens, one.logprobs) for one in alone] == [(one.tokens, one.logprobs) for one in together[slot]]
    rig.driver.close()


def test_a_row_that_was_interrupted_draws_on(model: Path) -> None:
    rig = CpuRig(model)
    sampling, prompt = replace(MANY[3], seed=77), prompt_of(20)
    whole = rig.generate(prompt, 12, sampling)

    known = [*prompt, *whole[:5]]
    start = rig.start(0, known, sampling, 10)
    rest = [token for step in rig.run([(0, len(known))], 7, [start]) for token in step[0].tokens]

    assert rest == whole[5:]
    rig.driver.close()


def test_scored_tokens_have_the_log_probabilities_that_torch_gives_them(model: Path) -> None:
    answers = []
    for options in ({}, IN_TORCH):
        rig = CpuRig(model, options=options)
        start: RowStart = replace(rig.start(0, prompt_of(90), replace(GREEDY, num_logprobs=2)), score_from=3)
        answers.append(rig.run([(0, 90)], starts=[start])[0][0].logprobs)
        rig.driver.close()

    found, expected = answers
    assert len(found) == len(expected) == 87
    assert [each.logprob for each in found] == pytest.approx([each.logprob for each in expected], abs=1e-5)
    assert [each.top[1][0] for each in found] == [each.top[1][0] for each in expected]


def test_draws_that_disagree_are_made_in_torch_and_said(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        rig = CpuRig(model, options=IN_TORCH)
    assert [record.message for record in caplog.records] == ["An op disagrees with its definition and is not used."]
    assert set(rig.driver._opened().ground.ops.bad) == {"native.head_sample"}
    assert rig.driver._loaded.models[1].is_native
    rig.driver.close()
