"""Guessing ahead: a row samples what it would have sampled, in fewer steps, and never more than its plan promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.contract import InspectSpec, LoadSpec, OpenSpec, Plan, RowResult, RowRun, RowStart, Sampling, StepResult
from drivers.fake import FakeDriver
from drivers.fake_model import FakeModel, continuation
from drivers.rows import right_guesses

GRANULE = 1024
MODEL = FakeModel()
BASE = 64
PROMPT = (7, 8, 9)


def steps_of(folder: Path, hits: int, sampling: Sampling, num_steps: int = 12) -> list[StepResult]:
    """One row on a driver that guesses so many tokens right at a time, for a plan of so many steps."""
    driver = FakeDriver()
    driver.open(OpenSpec(4, 1 << 16, GRANULE, 16, 4, 64, options={"draft_hits": str(hits)}), None)
    told = driver.inspect(InspectSpec(str(folder)))
    offsets = tuple(idx * told.segments[0].size_bytes for idx in range(len(told.segments)))
    driver.load(LoadSpec(1, InspectSpec(str(folder)), (10,), offsets), lambda _done, _total: None)
    start = RowStart(0, 1, 0, PROMPT, ((BASE, BASE + 1),), sampling)
    driver.apply(Plan(1, 1, starts=(start,), runs=(RowRun(0, len(PROMPT)),), num_steps=num_steps))
    results = [driver.step(idx) for idx in range(num_steps)]
    driver.close()
    return results


def tokens_of(results: list[StepResult]) -> list[int]:
    return [token for result in results for row in result.rows for token in row.tokens]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("hits", [0, 1, 2, 4])
def test_what_is_sampled_is_what_would_have_been_sampled(tmp_path: Path, hits: int, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=5, draft_tokens=4)

    results = steps_of(tmp_path, hits, sampling)

    assert tokens_of(results) == continuation(MODEL, PROMPT, 12, sampling)


@pytest.mark.parametrize(("hits", "busy_steps"), [(0, 12), (1, 7), (4, 4)])
def test_guesses_that_are_right_save_steps(tmp_path: Path, hits: int, busy_steps: int) -> None:
    results = steps_of(tmp_path, hits, Sampling(temperature=0.0, draft_tokens=4))

    assert sum(bool(result.rows) for result in results) == busy_steps
    assert all(result.num_tokens == 0 for result in results[busy_steps:])


def test_the_last_guesses_end_where_the_plan_ends(tmp_path: Path) -> None:
    results = steps_of(tmp_path, 4, Sampling(temperature=0.0, draft_tokens=4), num_steps=4)

    assert [[len(row.tokens) for row in result.rows] for result in results] == [[1], [3], [], []]
    assert [row.num_drafted for result in results for row in result.rows] == [0, 2]


def test_a_stop_among_the_guesses_ends_the_row_there(tmp_path: Path) -> None:
    expected = continuation(MODEL, PROMPT, 12, Sampling(temperature=0.0))
    sampling = Sampling(temperature=0.0, draft_tokens=4, stop_token_ids=(expected[3],))

    results = steps_of(tmp_path, 4, sampling)

    assert tokens_of(results) == expected[:4]
    assert [row.is_stopped for result in results for row in result.rows] == [False, True]


def test_penalties_and_guesses_do_not_go_together(tmp_path: Path) -> None:
    results = steps_of(tmp_path, 4, Sampling(temperature=0.0, draft_tokens=4, presence_penalty=1.0))

    assert [row.num_drafted for result in results for row in result.rows] == [0] * 12


@pytest.mark.parametrize(
    ("sampled", "guesses", "kept"),
    [((1, 2, 3), (1, 2), (1, 2, 3)), ((1, 2, 3), (1, 9), (1, 2)), ((1, 2, 3), (9, 2), (1,)), ((1,), (), (1,))],
)
def test_guesses_are_kept_up_to_the_first_wrong_one(sampled: tuple[int, ...], guesses: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert right_guesses(sampled, guesses) == kept


@pytest.mark.parametrize(("num_tokens", "num_drafted", "num_rejected"), [(1, 4, 4), (3, 4, 2), (5, 4, 0), (1, 0, 0), (0, 0, 0)])
def test_guesses_that_were_not_kept_were_made_in_vain(num_tokens: int, num_drafted: int, num_rejected: int) -> None:
    assert RowResult(0, tuple(range(num_tokens)), num_drafted=num_drafted).num_rejected == num_rejected
