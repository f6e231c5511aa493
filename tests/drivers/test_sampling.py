"""Draws, cuts, penalties and log-probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drivers.contract import Sampling
from drivers.ops import drawing, fused
from drivers.ops.drawing import Cuts
from drivers.philox import uniforms
from drivers.rows import Row
from drivers.sampling import cuts_of, penalize, pick_tokens, token_logprobs


def row(sampling: Sampling, position: int = 10, slot: int = 0) -> Row:
    """A row about to draw the token at `position`."""
    return Row(slot, 1, position, [], [], sampling, -1, 0)


def logits_of(num_rows: int, vocab_size: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    """Repeatable random logits."""
    return scale * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = logits_of(3, 50)
    picks = pick_tokens(logits, [row(Sampling(temperature=0.0))] * 3, fused.sample)
    assert [pick.token for pick in picks] == logits.argmax(-1).tolist()


def test_a_draw_is_the_same_alone_and_in_a_batch() -> None:
    logits = logits_of(4, 1000)
    settings = [
        Sampling(seed=3),
        Sampling(seed=3, top_k=40),
        Sampling(seed=4, top_p=0.9, temperature=0.8),
        Sampling(temperature=0.0),
    ]
    rows = [row(one, position) for position, one in enumerate(settings)]
    together = [pick.token for pick in pick_tokens(logits, rows, fused.sample)]
    alone = [pick_tokens(logits[idx : idx + 1], [rows[idx]], fused.sample)[0].token for idx in range(4)]
    assert together == alone


def test_draws_follow_the_distribution() -> None:
    mass = torch.tensor([0.5, 0.25, 0.125, 0.125])
    num = 8000
    rows = [row(Sampling(seed=1), position) for position in range(num)]
    tokens = torch.tensor([pick.token for pick in pick_tokens(mass.log().expand(num, 4), rows, fused.sample)])
    shares = torch.bincount(tokens, minlength=4) / num
    assert (shares - mass).abs().max() < 0.02


@given(
    seed=st.integers(0, 1000),
    vocab_size=st.sampled_from([5, 300, 700]),
    coarse=st.booleans(),
    top_k=st.sampled_from([0, 1, 3, 255, 256, 257, 5000]),
    top_p=st.sampled_from([1.0, 0.999, 0.7, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_the_fast_draw_equals_the_definition(seed: int, vocab_size: int, coarse: bool, top_k: int, top_p: float, min_p: float) -> None:
    logits = logits_of(3, vocab_size, seed)
    if coarse:  # many ties
        logits = (logits * 2).round() / 2
    cuts = Cuts(
        temperature=torch.tensor([1.0, 0.5, 2.0]),
        top_k=torch.tensor([top_k, 0, top_k]),
        top_p=torch.tensor([top_p, top_p, 1.0], dtype=torch.float64),
        min_p=torch.tensor([min_p, 0.0, min_p]),
    )
    numbers = torch.from_numpy(uniforms([seed] * 3, [0, 1, 2]))
    assert fused.sample(logits, cuts, numbers).tolist() == drawing.sample(logits, cuts, numbers).tolist()


def test_top_k_one_and_tiny_top_p_are_greedy() -> None:
    logits = logits_of(2, 400)
    picks = pick_tokens(logits, [row(Sampling(top_k=1)), row(Sampling(top_p=1e-9))], fused.sample)
    assert [pick.token for pick in picks] == logits.argmax(-1).tolist()


def test_a_tiny_temperature_is_greedy() -> None:
    logits = logits_of(1, 400)
    [pick] = pick_tokens(logits, [row(Sampling(temperature=1e-45))], fused.sample)
    assert pick.token == int(logits.argmax())


def test_tokens_cut_by_min_p_are_never_drawn() -> None:
    logits = torch.tensor([[0.0, -1.0, -3.0]])
    rows = [row(Sampling(min_p=0.2), position) for position in range(500)]
    tokens = {pick.token for pick in pick_tokens(logits.expand(500, 3), rows, fused.sample)}
    assert tokens == {0, 1}


def test_an_inverted_draw_never_lands_on_a_token_without_mass() -> None:
    mass = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    found = [int(drawing.invert(mass, torch.tensor([number], dtype=torch.float64))) for number in (0.0, 0.4999, 0.5, 1 - 2**-53)]
    assert found == [1, 1, 3, 3]


def test_repetition_divides_positive_and_multiplies_negative_scores() -> None:
    seen = row(Sampling(repetition_penalty=2.0))
    seen.tally.note([0, 1])
    scores = torch.tensor([4.0, -4.0, 4.0])
    penalize(scores, seen)
    assert scores.tolist() == [2.0, -8.0, 4.0]


def test_presence_counts_once_and_frequency_each_time_for_outputs() -> None:
    wordy = row(Sampling(presence_penalty=1.0, frequency_penalty=0.5))
    wordy.tally.note([3], [2, 2, 2, 1])
    scores = torch.zeros(4)
    penalize(scores, wordy)
    assert scores.tolist() == [0.0, -1.5, -2.5, 0.0]


def test_penalties_of_one_row_leave_the_others_alone() -> None:
    logits = torch.tensor([[2.0, 1.9], [2.0, 1.9]])
    wordy = row(Sampling(temperature=0.0, presence_penalty=1.0))
    wordy.tally.note([], [0])
    picks = pick_tokens(logits, [wordy, row(Sampling(temperature=0.0))], fused.sample)
    assert [pick.token for pick in picks] == [1, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_whose_logits_are_not_finite_fails_alone(bad: float) -> None:
    logits = logits_of(3, 20)
    logits[1, 7] = bad
    settings = [Sampling(), Sampling(num_logprobs=2), Sampling(temperature=0.0)]
    picks = pick_tokens(logits, [row(one) for one in settings], fused.sample)
    assert [pick.token >= 0 for pick in picks] == [True, False, True]


def test_a_token_with_no_chance_at_all_is_not_an_error() -> None:
    logits = torch.tensor([[float("-inf"), 1.0, 0.0]])
    [pick] = pick_tokens(logits, [row(Sampling(top_p=0.5))], fused.sample)
    assert pick.token == 1


def test_logprobs_are_of_the_raw_logits_with_the_likeliest_beside() -> None:
    logits = logits_of(2, 30)
    wordy = row(Sampling(temperature=0.0, num_logprobs=3, presence_penalty=50.0))
    wordy.tally.note([], [int(logits[0].argmax())])
    picks = pick_tokens(logits, [wordy, row(Sampling(temperature=0.0))], fused.sample)
    expected = logits.log_softmax(-1)
    assert picks[1].logprob is None
    found = picks[0].logprob
    assert found is not None
    assert found.logprob == pytest.approx(float(expected[0, picks[0].token]), abs=1e-5)
    assert [token for token, _ in found.top] == expected[0].topk(3).indices.tolist()


def test_each_row_gets_as_many_likeliest_tokens_as_it_asked_for() -> None:
    found = token_logprobs(logits_of(3, 30), [1, 2, 3], [0, 2, 99])
    assert [len(one.top) for one in found] == [0, 2, 30]


def test_cuts_take_the_settings_row_by_row() -> None:
    cuts = cuts_of([Sampling(top_k=-1), Sampling(top_k=7, min_p=0.5)])
    assert cuts.top_k.tolist() == [0, 7]
    assert cuts.min_p.tolist() == [0.0, 0.5]


def test_a_log_probability_is_the_same_alone_and_in_a_batch_on_several_threads() -> None:
    before, logits = torch.get_num_threads(), logits_of(40, 49152, scale=4.0)
    torch.set_num_threads(2)
    try:
        together = token_logprobs(logits, [7] * 40, [0] * 40)
        alone = [token_logprobs(logits[idx : idx + 1], [7], [0])[0] for idx in range(40)]
    finally:
        torch.set_num_threads(before)
    assert together == alone
