"""Guessing on the CPU driver: by look-up and by a smaller model, the output is bit for bit what it is without."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from drivers.arena import Arena
from drivers.contract import InspectSpec, LoadSpec, RowResult, Sampling
from drivers.drafting import SEATS, WINDOW, Drafter
from drivers.rows import Row
from tests.drivers.cpu_rig import GRANULE_BYTES, GREEDY, PAGE_TOKENS, TORCH, CpuRig, prompt_of, save_model

DRAWN = Sampling(temperature=0.8, top_p=0.95, seed=11)
DRAFTER = 2  # id of the model that guesses


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, "Llama")
    return directory


@pytest.fixture(params=[{}, TORCH], ids=["native", "torch"])
def rig(model: Path, request: pytest.FixtureRequest) -> Iterator[CpuRig]:
    options: Mapping[str, str] = request.param
    rig = CpuRig(model, options=options)
    yield rig
    rig.driver.close()


def load_drafter(rig: CpuRig, directory: Path) -> None:
    """Load a model to guess with, at the end of the arena."""
    source = InspectSpec(str(directory))
    spec = rig.driver.inspect(source)
    end = rig.num_slabs << 20
    offsets = []
    for segment in spec.segments:
        end -= -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
        offsets.append(end)
    rig.driver.load(LoadSpec(DRAFTER, source, (90,), tuple(offsets)), lambda _done, _total: None)


def generate(
    rig: CpuRig, prompts: list[list[int]], sampling: Sampling, *, draft_tokens: int, draft_model_id: int = 0
) -> list[list[RowResult]]:
    """All prompts at once, 32 tokens each in quanta of 8; answers the results of each row."""
    wanted = replace(sampling, draft_tokens=draft_tokens)
    starts = [replace(rig.start(slot, prompt, wanted, 40), draft_model_id=draft_model_id) for slot, prompt in enumerate(prompts)]
    results = rig.run([(slot, len(prompt)) for slot, prompt in enumerate(prompts)], 8, starts)
    for _ in range(3):
        results += rig.run([(slot, 1) for slot in range(len(prompts))], 8)
    rig.run([], 0, clears=range(len(prompts)))
    return [[step[slot] for step in results if slot in step] for slot in range(len(prompts))]


def tokens_of(results: list[RowResult]) -> list[int]:
    return [token for result in results for token in result.tokens]


def num_right(results: list[RowResult]) -> int:
    return sum(result.num_drafted - result.num_rejected for result in results)


REPEATING = prompt_of(12) * 3


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling(temperature=0.0, num_logprobs=2)], ids=["greedy", "drawn", "logprobs"])
def test_look_up_changes_nothing_but_the_number_of_steps(rig: CpuRig, sampling: Sampling) -> None:
    [plain] = generate(rig, [REPEATING], sampling, draft_tokens=0)

    [guessed] = generate(rig, [REPEATING], sampling, draft_tokens=4)

    assert tokens_of(guessed) == tokens_of(plain)
    assert len(tokens_of(plain)) == 32
    if sampling.num_logprobs >= 0:
        chances = [[item.logprob for result in run for item in result.logprobs] for run in (plain, guessed)]
        assert chances[1] == pytest.approx(chances[0], abs=1e-4)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_model_that_agrees_is_always_right(rig: CpuRig, model: Path, sampling: Sampling) -> None:
    prompts = [prompt_of(20, 1), prompt_of(70, 2)]
    plain = generate(rig, prompts, sampling, draft_tokens=0)
    load_drafter(rig, model)

    guessed = generate(rig, prompts, sampling, draft_tokens=3, draft_model_id=DRAFTER)

    assert [tokens_of(results) for results in guessed] == [tokens_of(results) for results in plain]
    assert all(result.num_rejected == 0 for results in guessed for result in results)
    assert all(num_right(results) == 4 * 6 - 1 or num_right(results) == 4 * 6 for results in guessed)


def test_a_model_that_disagrees_changes_nothing(rig: CpuRig, tmp_path: Path) -> None:
    save_model(tmp_path, "Llama", num_hidden_layers=1, num_key_value_heads=6)
    prompts = [prompt_of(20, 1), prompt_of(7, 2)]
    plain = generate(rig, prompts, GREEDY, draft_tokens=0)
    load_drafter(rig, tmp_path)

    guessed = generate(rig, prompts, GREEDY, draft_tokens=4, draft_model_id=DRAFTER)

    assert [tokens_of(results) for results in guessed] == [tokens_of(results) for results in plain]
    assert any(result.num_rejected for results in guessed for result in results)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_row_longer_than_the_window_is_still_guessed_for(sampling: Sampling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivers.drafting.WINDOW", 48)
    save_model(tmp_path, "Mistral", sliding_window=6)  # what is behind three layers of that, no token depends on
    rig = CpuRig(tmp_path)
    plain = generate(rig, [prompt_of(90)], sampling, draft_tokens=0)
    load_drafter(rig, tmp_path)

    guessed = generate(rig, [prompt_of(90)], sampling, draft_tokens=4, draft_model_id=DRAFTER)

    assert tokens_of(guessed[0]) == tokens_of(plain[0])
    assert num_right(guessed[0]) == sum(result.num_drafted for result in guessed[0]) > 0
    rig.driver.close()


def test_more_rows_than_seats_go_on_without_guesses(rig: CpuRig, model: Path) -> None:
    prompts = [prompt_of(9 + seed, seed) for seed in range(SEATS + 2)]
    plain = generate(rig, prompts, GREEDY, draft_tokens=0)
    load_drafter(rig, model)

    guessed = generate(rig, prompts, GREEDY, draft_tokens=1, draft_model_id=DRAFTER)

    assert [tokens_of(results) for results in guessed] == [tokens_of(results) for results in plain]
    assert sum(any(result.num_drafted for result in results) for results in guessed) == SEATS


def test_a_model_that_was_unloaded_guesses_no_more(rig: CpuRig, model: Path) -> None:
    plain = generate(rig, [prompt_of(20)], GREEDY, draft_tokens=0)
    load_drafter(rig, model)
    generate(rig, [prompt_of(20)], GREEDY, draft_tokens=3, draft_model_id=DRAFTER)
    rig.driver.unload(DRAFTER)

    [guessed] = generate(rig, [prompt_of(20)], GREEDY, draft_tokens=3, draft_model_id=DRAFTER)

    assert tokens_of(guessed) == tokens_of(plain[0])


@torch.inference_mode()  # as every step is
def test_what_was_guessed_wrongly_is_forgotten(rig: CpuRig, model: Path) -> None:
    load_drafter(rig, model)
    models = rig.driver._loaded.models
    sampling = replace(GREEDY, draft_tokens=4)
    row = Row(0, 1, 20, [7], [], sampling, -1, 20, draft_model_id=DRAFTER, past=[*prompt_of(20), 7])
    drafter = Drafter(lambda: models, GRANULE_BYTES)
    guesses = drafter.guess(row, 4)

    row.past += [guesses[0], (guesses[1] + 1) % 199, 5, 6]  # and two without a guess
    beside = Drafter(lambda: models, GRANULE_BYTES)

    assert drafter.guess(row, 4) == beside.guess(row, 4)
    for each in (drafter, beside):
        each.close()


def num_arenas() -> int:
    """Arenas that somebody still holds."""
    gc.collect()
    return sum(type(each) is Arena for each in gc.get_objects())


def test_what_a_model_guesses_on_is_given_back_with_the_model(rig: CpuRig, model: Path) -> None:
    before = num_arenas()
    load_drafter(rig, model)
    generate(rig, [prompt_of(20)], GREEDY, draft_tokens=3, draft_model_id=DRAFTER)
    assert num_arenas() == before + 1
    rig.run([(0, 20)], 3, [replace(rig.start(0, prompt_of(20), replace(GREEDY, draft_tokens=3), 40), draft_model_id=DRAFTER)])
    frame_bytes = rig.driver.inspect(InspectSpec(str(model))).groups[0].frame_bytes
    assert rig.workspace == {DRAFTER: SEATS * WINDOW // PAGE_TOKENS * frame_bytes}, "and is told"

    rig.driver.unload(DRAFTER)

    assert num_arenas() == before


def test_a_machine_without_memory_for_the_pages_of_a_model_guesses_by_look_up(
    rig: CpuRig, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [plain] = generate(rig, [REPEATING], GREEDY, draft_tokens=0)
    load_drafter(rig, model)
    monkeypatch.setattr("drivers.drafting.SEATS", 1 << 40)

    [guessed] = generate(rig, [REPEATING], GREEDY, draft_tokens=4, draft_model_id=DRAFTER)

    assert tokens_of(guessed) == tokens_of(plain)
    assert sum(result.num_drafted for result in guessed)


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": 100}, {"vocab_size": 300}, {"max_position_embeddings": 8}, {"max_position_embeddings": 16}],
    ids=["fewer tokens", "more tokens", "less than a page", "a page"],
)
def test_a_model_that_does_not_fit_changes_nothing(rig: CpuRig, tmp_path: Path, change: Mapping[str, int]) -> None:
    save_model(tmp_path, "Llama", **change)
    wanted = rig.generate(prompt_of(40), 32)
    load_drafter(rig, tmp_path)
    start = replace(rig.start(0, prompt_of(40), replace(GREEDY, draft_tokens=15), 40), draft_model_id=DRAFTER)

    results = rig.run([(0, 40)], 32, [start])

    assert tokens_of([step[0] for step in results if 0 in step]) == wanted
