"""Checks of rows: the same tokens come out of a history, whichever way it is cut into plans, batched, drawn or scored."""

from __future__ import annotations

import math

from drivers.conformance_bench import GREEDY, PAGE_TOKENS, How, Subject, require
from drivers.contract import FramePatch, RowRun, RowStart, Sampling, StepResult


def chunks_equal_one_prefill(subject: Subject) -> None:
    """A prefill cut into chunks, some across page borders, gives what it gives at once; unfinished chunks sample nothing."""
    with subject.bench() as bench:
        prompt = bench.prompt(45)
        whole = bench.generate(prompt, 6)
        for chunk in (1, 7, PAGE_TOKENS, 30):
            cut = bench.generate(prompt, 6, How(chunk=chunk))
            require(cut.tokens == whole.tokens, f"chunks of {chunk} give the same tokens")
            num_chunks = math.ceil(len(prompt) / chunk)
            require(all(not row.tokens for row in cut.results[: num_chunks - 1]), "an unfinished prefill samples nothing")
            require(all(len(row.tokens) == 1 for row in cut.results[num_chunks - 1 :]), "every later step samples one token")


def long_quanta_equal_single_steps(subject: Subject) -> None:
    """K steps in one plan give what K plans of one step give."""
    with subject.bench() as bench:
        single = bench.generate(bench.prompt(20), 24, How(quantum=1)).tokens
        for quantum in (2, 8, 24):
            require(bench.generate(bench.prompt(20), 24, How(quantum=quantum)).tokens == single, f"quanta of {quantum} give the same")


def stop_token_ends_a_row(subject: Subject) -> None:
    """A row stops after sampling a stop token, says so, and takes no part in later steps; its slot can be seated again."""
    with subject.bench() as bench:
        free = bench.generate(bench.prompt(20), 12).tokens
        stop_idx = next(idx for idx, token in enumerate(free) if token not in free[:idx] and idx >= 2)
        sampling = Sampling(temperature=0.0, stop_token_ids=(free[stop_idx],))
        stopped = bench.generate(bench.prompt(20), 12, How(quantum=12, sampling=sampling))
        require(stopped.tokens == free[: stop_idx + 1], "the row ends with the stop token")
        flags = [row.is_stopped for row in stopped.results]
        require(flags == [False] * stop_idx + [True], "is_stopped is told with the stop token alone, and nothing after it")
        require(bench.generate(bench.prompt(20), 12).tokens == free, "the slot can be seated again")


def patches_grow_page_tables(subject: Subject) -> None:
    """A row that starts with one page goes on through pages that patches add."""
    with subject.bench() as bench:
        prompt = bench.prompt(10)
        whole = bench.generate(prompt, 40).tokens
        frames = bench.take(64)
        first = tuple(row[:1] for row in frames)
        starts: tuple[RowStart, ...] = (bench.start(prompt, first, How()),)
        steps = bench.submit(6, starts=starts, runs=(RowRun(0, len(prompt)),))
        for page_idx in range(1, 4):
            patches = tuple(FramePatch(0, group, page_idx, (row[page_idx],)) for group, row in enumerate(frames))
            steps += bench.submit(PAGE_TOKENS, patches=patches, runs=(RowRun(0, 1),))
        require(_tokens(steps, 0)[:40] == whole, "tokens behind patched pages are the same")


def strangers_change_nothing(subject: Subject) -> None:
    """Rows that share steps, one in prefill while others decode, give what each gives alone."""
    with subject.bench() as bench:
        prompts = [bench.prompt(num_tokens, salt) for salt, num_tokens in enumerate((5, 16, 33))]
        alone = [bench.generate(prompt, 8).tokens for prompt in prompts]
        frames = [bench.take(48) for _ in prompts]
        hows = [How(slot=slot) for slot in (4, 0, 7)]
        starts = [bench.start(prompt, pages, how) for prompt, pages, how in zip(prompts, frames, hows, strict=True)]
        steps = bench.submit(3, starts=tuple(starts[:2]), runs=(RowRun(4, 5), RowRun(0, 16)))
        steps += bench.submit(1, starts=tuple(starts[2:]), runs=(RowRun(7, 20), RowRun(0, 1), RowRun(4, 1)))
        steps += bench.submit(8, runs=(RowRun(4, 1), RowRun(7, 13), RowRun(0, 1)))
        for how, expected in zip(hows, alone, strict=True):
            require(_tokens(steps, how.slot)[:8] == expected, f"the row in slot {how.slot} gives what it gives alone")


def resting_rows_keep_their_place(subject: Subject) -> None:
    """A seated row that a plan does not run computes nothing, and goes on later as if nothing had been."""
    with subject.bench() as bench:
        expected = bench.generate(bench.prompt(20), 8).tokens
        start = bench.start(bench.prompt(20), bench.take(32), How(slot=1))
        steps = bench.submit(3, starts=(start,), runs=(RowRun(1, 20),))
        bench.generate(bench.prompt(9, salt=3), 5)
        steps += bench.submit(5, runs=(RowRun(1, 1),))
        require(_tokens(steps, 1) == expected, "a row that rested goes on with the same tokens")


def draws_follow_seed_and_position(subject: Subject) -> None:
    """Draws are a function of seed and position: the same in any quantum and after a resume, different for another seed."""
    with subject.bench() as bench:
        prompt = bench.prompt(20)
        sampling = Sampling(temperature=1.5, seed=2**63 + 11)
        drawn = bench.generate(prompt, 24, How(quantum=8, sampling=sampling))
        require(bench.generate(prompt, 24, How(quantum=1, slot=3, sampling=sampling)).tokens == drawn.tokens, "the same in single steps")
        resumed = bench.generate(prompt + drawn.tokens[:10], 14, How(sampling=sampling))
        require(resumed.tokens == drawn.tokens[10:], "the same after a resume")
        other = bench.generate(prompt, 24, How(sampling=Sampling(temperature=1.5, seed=5))).tokens
        require(other != drawn.tokens, "another seed draws other tokens")
        require(bench.generate(prompt, 24).tokens == bench.generate(prompt, 24, How(sampling=GREEDY)).tokens, "greedy repeats")


def logprobs_are_told(subject: Subject) -> None:
    """Log-probabilities come when asked for, sorted, and the greedy token is the likeliest one."""
    with subject.bench() as bench:
        prompt = bench.prompt(20)
        require(not bench.generate(prompt, 4).logprobs, "none where none were asked for")
        told = bench.generate(prompt, 4, How(sampling=Sampling(temperature=0.0, num_logprobs=3)))
        require(len(told.logprobs) == 4, "one for each token")
        for token, entry in zip(told.tokens, told.logprobs, strict=True):
            values = [value for _, value in entry.top]
            require(len(values) == 3 and values == sorted(values, reverse=True) and values[0] <= 0.0, "the likeliest come first")
            require(entry.top[0][0] == token and math.isclose(entry.logprob, values[0], abs_tol=1e-6), "the greedy token is the likeliest")


def scores_equal_what_was_sampled(subject: Subject) -> None:
    """Scoring a continuation gives the log-probabilities that sampling it gave, cut into chunks or not, and samples nothing."""
    with subject.bench() as bench:
        prompt = bench.prompt(20)
        sampled = bench.generate(prompt, 12, How(sampling=Sampling(temperature=0.0, num_logprobs=0)))
        tokens = prompt + sampled.tokens
        for chunk in (len(tokens), 9):
            start = RowStart(2, 1, 0, tokens, bench.take(len(tokens)), GREEDY, score_from=len(prompt))
            starts: tuple[RowStart, ...] = (start,)
            steps: list[StepResult] = []
            for first in range(0, len(tokens), chunk):
                steps += bench.submit(1, starts=starts, runs=(RowRun(2, min(chunk, len(tokens) - first)),))
                starts = ()
            bench.submit(clears=(2,))
            scored = [entry.logprob for step in steps for row in step.rows for entry in row.logprobs]
            expected = [entry.logprob for entry in sampled.logprobs]
            require(not _tokens(steps, 2), "scoring samples nothing")
            is_equal = len(scored) == len(expected) and all(map(_is_near, scored, expected))
            require(is_equal, f"scores in chunks of {chunk} are those of sampling")


def results_count_their_work(subject: Subject) -> None:
    """A step tells how many tokens it computed, all rows together, and how long it took."""
    with subject.bench() as bench:
        start = bench.start(bench.prompt(20), bench.take(32), How())
        steps = bench.submit(2, starts=(start,), runs=(RowRun(0, 20),))
        require([step.num_tokens for step in steps] == [20, 1], "num_tokens counts what was computed")
        require(all(step.compute_s >= 0.0 for step in steps), "compute_s is a duration")


def _tokens(steps: list[StepResult], slot: int) -> tuple[int, ...]:
    return tuple(token for step in steps for row in step.rows if row.slot == slot for token in row.tokens)


def _is_near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)


CHECKS = (
    chunks_equal_one_prefill,
    long_quanta_equal_single_steps,
    stop_token_ends_a_row,
    patches_grow_page_tables,
    strangers_change_nothing,
    resting_rows_keep_their_place,
    draws_follow_seed_and_position,
    logprobs_are_told,
    scores_equal_what_was_sampled,
    results_count_their_work,
)
