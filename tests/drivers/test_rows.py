"""Row slots between plans: who runs in which step, with which tokens, and what a chunk scores."""

from __future__ import annotations

import pytest

from drivers.contract import FramePatch, Plan, RowRun, RowStart, Sampling
from drivers.errors import PlanRejected
from drivers.rows import RowState, RowTable, StepRows

GREEDY = Sampling(temperature=0.0)


def start(slot: int, tokens: tuple[int, ...], position: int = 0, model_id: int = 1, score_from: int = -1) -> RowStart:
    """A row with frames for 64 tokens."""
    return RowStart(slot, model_id, position, tokens, ((3, 7, 5, 9),), GREEDY, score_from=score_from)


def seated(*starts: RowStart, runs: tuple[tuple[int, int], ...] = (), num_steps: int = 1) -> RowTable:
    """A table with one plan applied."""
    table = RowTable(8, 64, 16)
    table.apply(Plan(1, 1, starts=starts, runs=tuple(RowRun(*run) for run in runs), num_steps=num_steps))
    return table


def finish(table: RowTable, share: StepRows, tokens: dict[int, int]) -> None:
    """Advance every row of a share; rows in `tokens` sample."""
    for row, count in zip(share.rows, share.counts, strict=True):
        table.advance(row, count)
        if row.slot in tokens:
            table.append(row, tokens[row.slot])


def test_a_step_lays_rows_side_by_side_decode_rows_first_shortest_first() -> None:
    table = seated(start(0, (10, 11, 12)), start(1, (20,), position=9), start(2, (30,), position=4), runs=((0, 3), (1, 1), (2, 1)))
    [share] = table.take(0)
    assert [row.slot for row in share.rows] == [2, 1, 0]
    assert share.tokens.tolist() == [30, 20, 10, 11, 12]
    assert share.positions.tolist() == [4, 9, 0, 1, 2]
    assert share.starts == (0, 1, 2)


def test_a_chunk_that_ends_before_the_prompt_does_not_sample() -> None:
    table = seated(start(0, (10, 11, 12)), runs=((0, 2),), num_steps=2)
    [share] = table.take(0)
    assert not share.samples(0)
    finish(table, share, {})
    assert table.take(1) == ()


def test_a_row_that_samples_runs_one_token_in_each_later_step() -> None:
    table = seated(start(0, (10, 11)), runs=((0, 2),), num_steps=3)
    [first] = table.take(0)
    assert first.samples(0)
    finish(table, first, {0: 77})
    [second] = table.take(1)
    assert (second.tokens.tolist(), second.positions.tolist()) == ([77], [2])


def test_a_stop_token_ends_the_row_and_later_runs_pass_over_it() -> None:
    table = RowTable(8, 64, 16)
    stopping = RowStart(0, 1, 0, (10,), ((3,),), Sampling(temperature=0.0, stop_token_ids=(99,)))
    table.apply(Plan(1, 1, starts=(stopping,), runs=(RowRun(0, 1),), num_steps=4))
    [share] = table.take(0)
    table.advance(share.rows[0], 1)
    assert table.append(share.rows[0], 99)
    assert table.take(1) == ()
    table.apply(Plan(1, 2, runs=(RowRun(0, 1),), num_steps=1))
    assert table.take(0) == ()


def test_a_failed_row_computes_no_more_and_the_others_go_on() -> None:
    table = seated(start(0, (10,)), start(1, (20,)), runs=((0, 1), (1, 1)), num_steps=2)
    [share] = table.take(0)
    finish(table, share, {1: 21})
    table.fail(share.rows[0])
    [after] = table.take(1)
    assert [row.slot for row in after.rows] == [1]
    assert share.rows[0].state is RowState.FAILED


def test_rows_of_two_models_run_in_separate_shares() -> None:
    table = seated(start(0, (10,)), start(1, (20,), model_id=2), start(2, (30,)), runs=((0, 1), (1, 1), (2, 1)))
    shares = table.take(0)
    assert {share.model_id: [row.slot for row in share.rows] for share in shares} == {1: [0, 2], 2: [1]}


def test_patches_replace_and_extend_a_page_table() -> None:
    table = seated(start(0, (10,)))
    table.apply(Plan(1, 2, patches=(FramePatch(0, 0, 3, (40, 41)),)))
    row = table.row(0)
    assert row is not None
    assert row.tables[0].tolist() == [3, 7, 5, 40, 41]


def test_scored_tokens_are_told_by_the_token_before_them_across_chunks() -> None:
    table = seated(start(0, (10, 11, 12, 13, 14), position=4, score_from=6), runs=((0, 3),))
    [share] = table.take(0)
    assert share.scored(0) == (1, [12, 13])  # positions 6 and 7, told by the tokens at 5 and 6
    finish(table, share, {})
    table.apply(Plan(1, 2, runs=(RowRun(0, 2),), num_steps=1))
    [share] = table.take(0)
    assert share.scored(0) == (0, [14])
    assert not share.samples(0)


def test_the_first_pending_token_is_never_scored() -> None:
    table = seated(start(0, (10, 11, 12), position=4, score_from=0), runs=((0, 3),))
    [share] = table.take(0)
    assert share.scored(0) == (0, [11, 12])


def test_a_chunk_before_the_scored_part_scores_nothing() -> None:
    table = seated(start(0, (10, 11, 12, 13), score_from=3), runs=((0, 2),))
    [share] = table.take(0)
    assert share.scored(0)[1] == []


def test_penalties_count_input_and_output_apart() -> None:
    table = RowTable(8, 64, 16)
    penalized = Sampling(temperature=0.0, presence_penalty=1.0)
    table.apply(
        Plan(
            1,
            1,
            starts=(RowStart(0, 1, 3, (13, 14), ((3,),), penalized, history=(10, 11, 12), output_start=4),),
            runs=(RowRun(0, 2),),
            num_steps=1,
        )
    )
    [share] = table.take(0)
    finish(table, share, {})
    assert share.rows[0].tally.marks.tolist() == [[10, 0], [11, 0], [12, 0], [13, 0], [14, 1]]


def test_steps_out_of_order_are_rejected() -> None:
    table = seated(start(0, (10,)), runs=((0, 1),), num_steps=2)
    with pytest.raises(PlanRejected):
        table.take(1)
    table.take(0)
    table.take(1)
    with pytest.raises(PlanRejected):
        table.take(2)
