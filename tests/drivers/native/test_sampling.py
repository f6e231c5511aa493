"""Native draws against the definition, on every level of instructions that this processor has and on one thread and two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drivers.contract import Sampling
from drivers.native.engine import Engine, StepInvalid
from drivers.native.isa import levels
from drivers.native.sampling import Draws, draw, draw_of
from drivers.ops import drawing
from drivers.philox import uniforms
from drivers.rows import Row
from drivers.sampling import Asked, Pick, pick_tokens
from tests.drivers.native.engine_rig import MODELS, Rig

NAN, INF = float("nan"), float("inf")
CHUNK = 4096  # cpu/sampling.cc
GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Engines:
    """One for every level and number of threads."""

    all: tuple[Engine, ...]

    def picks(self, logits: Tensor, rows: Sequence[Row], positions: Sequence[int] | None = None) -> list[Pick]:
        """What rows draw, which is the same on all of them."""
        places = [row.position for row in rows] if positions is None else positions
        draws = Draws.of([Asked(row, position) for row, position in zip(rows, places, strict=True)])
        first, *others = [draw_of(engine, logits, draws) for engine in self.all]
        assert all(repr(other) == repr(first) for other in others)
        return first


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    opened = Engines(tuple(Engine(threads, level=level) for level in levels() for threads in (1, 2)))
    yield opened
    for engine in opened.all:
        engine.close()


def row(sampling: Sampling, position: int = 10, outputs: Sequence[int] = (), seen: Sequence[int] = ()) -> Row:
    """A row about to draw the token at `position`."""
    made = Row(0, 1, position, [], [], sampling, -1, 0)
    made.tally.note(seen, outputs)
    return made


def logits_of(num_rows: int, vocab_size: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))


def defined(logits: Tensor, rows: Sequence[Row]) -> list[Pick]:
    return pick_tokens(logits, rows, drawing.sample)


def tokens_of(picks: Sequence[Pick]) -> list[int]:
    return [pick.token for pick in picks]


SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([1.0, 0.5, 2.0, 1e-9, 0.0]),
    top_k=st.sampled_from([0, 0, 1, 3, 255, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 0.999, 0.7, 0.01, 0.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.5, 1.0, 1.5]),
    seed=st.integers(0, 2**64 - 1),
)


@given(
    seed=st.integers(0, 1000),
    vocab_size=st.sampled_from([1, 5, 16, 17, 300, CHUNK, CHUNK + 1]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    settings=st.lists(SETTINGS, min_size=1, max_size=4),
)
def test_a_draw_equals_the_definition(engines: Engines, seed: int, vocab_size: int, scale: float, settings: list[Sampling]) -> None:
    logits = logits_of(len(settings), vocab_size, seed, scale)
    rows = [row(one, position) for position, one in enumerate(settings)]

    assert tokens_of(engines.picks(logits, rows)) == tokens_of(defined(logits, rows))


@pytest.mark.parametrize("top_k", [1, 7, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.83])
def test_of_equal_logits_the_smallest_ids_are_kept(engines: Engines, top_k: int, top_p: float) -> None:
    logits = torch.zeros(40, 2 * CHUNK + 5)
    logits[:, ::3] = -0.0
    rows = [row(Sampling(top_k=top_k, top_p=top_p, seed=3), position) for position in range(40)]

    tokens = tokens_of(engines.picks(logits, rows))

    assert tokens == tokens_of(defined(logits, rows))
    assert max(tokens) < top_k


@given(seed=st.integers(0, 10_000), top_k=st.sampled_from([2, 3, 20, 90]), min_p=st.sampled_from([0.0, 0.3]))
def test_of_equal_logits_below_others_as_many_are_kept_as_there_is_room(engines: Engines, seed: int, top_k: int, min_p: float) -> None:
    logits = logits_of(8, 100, seed, 1.0).round()
    rows = [row(Sampling(top_k=top_k, min_p=min_p, seed=seed), position) for position in range(8)]

    assert tokens_of(engines.picks(logits, rows)) == tokens_of(defined(logits, rows))


def test_top_p_keeps_the_fewest_that_reach_it_where_all_are_equal(engines: Engines) -> None:
    rows = [row(Sampling(top_p=0.25, seed=1), position) for position in range(200)]

    tokens = tokens_of(engines.picks(torch.zeros(200, 16), rows))

    assert set(tokens) == {0, 1, 2, 3}


def test_rows_that_draw_stand_beside_rows_that_do_not(engines: Engines) -> None:
    logits = logits_of(5, 1000)
    settings = [GREEDY, Sampling(seed=3), GREEDY, Sampling(seed=4, top_p=0.9, temperature=0.8), Sampling(seed=5, top_k=40, num_logprobs=2)]
    rows = [row(one, position) for position, one in enumerate(settings)]

    together = engines.picks(logits, rows)

    assert tokens_of(together) == tokens_of(defined(logits, rows))
    assert together == [engines.picks(logits[idx : idx + 1], [rows[idx]])[0] for idx in range(5)]


def test_draws_follow_the_distribution(engines: Engines) -> None:
    mass = torch.tensor([0.5, 0.25, 0.125, 0.125])
    num = 8000
    rows = [row(Sampling(seed=1), position) for position in range(num)]

    tokens = torch.tensor(tokens_of(engines.picks(mass.log().repeat(num, 1), rows)))

    assert (torch.bincount(tokens, minlength=4) / num - mass).abs().max() < 0.02


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (2**64 - 1, 2**40 + 3), (-5, 17), (123456789012345678, 1)])
def test_numbers_are_those_of_the_generator(engines: Engines, seed: int, position: int) -> None:
    [number] = uniforms([seed], [position]).tolist()

    [pick] = engines.picks(torch.zeros(1, 1 << 16), [row(Sampling(seed=seed), position)])

    assert pick.token == int(number * (1 << 16))


def test_a_row_draws_behind_each_of_its_guesses(engines: Engines) -> None:
    logits, drawing_row = logits_of(3, 500), row(Sampling(seed=9))

    behind = engines.picks(logits, [drawing_row] * 3, [10, 11, 12])

    assert tokens_of(behind) == tokens_of(pick_tokens(logits, [drawing_row] * 3, drawing.sample, [10, 11, 12]))


def test_tokens_without_a_chance_are_never_drawn(engines: Engines) -> None:
    logits = torch.full((300, 50), -INF)
    logits[:, 17], logits[:, 31] = 1.0, 0.5
    settings = (Sampling(), Sampling(top_k=5), Sampling(top_p=0.999))

    tokens = tokens_of(engines.picks(logits, [row(settings[idx % 3], idx) for idx in range(300)]))

    assert set(tokens) == {17, 31}


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("at", [0, 7, CHUNK + 2])
def test_a_row_whose_logits_are_not_finite_fails_alone(engines: Engines, bad: float, at: int) -> None:
    logits = logits_of(3, CHUNK + 3)
    logits[1] = logits[1] if bad != -INF else -INF
    logits[1, at] = bad

    picks = engines.picks(logits, [row(Sampling(top_p=0.9)), row(Sampling(num_logprobs=2)), row(GREEDY)])

    assert [pick.token >= 0 for pick in picks] == [True, False, True]
    assert picks[1].logprob is None


def test_what_a_tiny_temperature_makes_infinite_is_drawn_as_if_greedy(engines: Engines) -> None:
    logits = 1e36 * logits_of(1, 40)

    [pick] = engines.picks(logits, [row(Sampling(temperature=1e-9))])

    assert pick.token == int(logits.argmax())


# ---------------------------------------------------------------------------------------------------------------- penalties, logprobs


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    "penalties", [{"repetition_penalty": 1.3}, {"presence_penalty": 2.0}, {"frequency_penalty": 0.7}, {"frequency_penalty": -0.5}]
)
def test_penalties_are_those_of_the_definition(engines: Engines, temperature: float, penalties: dict[str, float]) -> None:
    logits = logits_of(4, 60, scale=1.0)
    sampling = Sampling(temperature=temperature, seed=5, num_logprobs=1, **penalties)  # type: ignore[arg-type]
    rows = [row(sampling, idx, outputs=[3, 3, 3, 7, idx, int(one)], seen=[9, 11]) for idx, one in enumerate(logits.argmax(-1))]

    found, expected = engines.picks(logits, rows), defined(logits, rows)

    assert tokens_of(found) == tokens_of(expected)
    assert [_logprob(pick) for pick in found] == pytest.approx([_logprob(pick) for pick in expected], abs=1e-5)


def test_penalties_of_one_row_leave_the_others_alone(engines: Engines) -> None:
    logits = torch.tensor([[2.0, 1.9], [2.0, 1.9], [2.0, 1.9]])
    wordy = row(Sampling(temperature=0.0, presence_penalty=1.0), outputs=[0])

    assert tokens_of(engines.picks(logits, [row(GREEDY), wordy, row(GREEDY)])) == [0, 1, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_logprobs_are_of_the_raw_logits_with_the_likeliest_beside(engines: Engines, temperature: float) -> None:
    logits = logits_of(3, CHUNK + 100)
    rows = [row(Sampling(temperature=temperature, num_logprobs=num), outputs=[1, 2]) for num in (0, 3, 40)]

    picks = engines.picks(logits, rows)

    exact = logits.double().log_softmax(-1)
    for idx, pick in enumerate(picks):
        assert pick.logprob is not None
        assert pick.logprob.logprob == pytest.approx(float(exact[idx, pick.token]), abs=2e-6)
        values, ids = exact[idx].topk((0, 3, 40)[idx])
        assert [token for token, _ in pick.logprob.top] == ids.tolist()
        assert [value for _, value in pick.logprob.top] == pytest.approx(values.tolist(), abs=2e-6)


def test_no_more_likeliest_tokens_are_told_than_there_are_and_the_smaller_of_equals_first(engines: Engines) -> None:
    [pick] = engines.picks(torch.tensor([[0.0, 1.0, 1.0, -INF]]), [row(Sampling(temperature=0.0, num_logprobs=9))])

    assert pick.logprob is not None
    assert [token for token, _ in pick.logprob.top] == [1, 2, 0, 3]


def test_a_given_token_is_told_and_not_drawn(engines: Engines) -> None:
    logits = logits_of(2, 300)

    picks = draw_of(
        engines.all[0], logits, Draws.of([Asked(row(Sampling(num_logprobs=num)), 3, given) for num, given in ((-1, 4), (2, 299))])
    )

    exact = logits.double().log_softmax(-1)
    assert tokens_of(picks) == [4, 299]
    assert [_logprob(pick) for pick in picks] == pytest.approx([float(exact[0, 4]), float(exact[1, 299])], abs=2e-6)


def _logprob(pick: Pick) -> float:
    assert pick.logprob is not None
    return pick.logprob.logprob


# ------------------------------------------------------------------------------------------------------------------------ with the head


@pytest.mark.parametrize("model", ["llama", "gemma3"])
@pytest.mark.parametrize("most_rows", [0, 1, 3])
def test_from_hidden_states_rows_draw_what_their_logits_say(model: str, most_rows: int) -> None:
    rig = Rig(MODELS[model])
    hidden = rig.alone(30)
    settings = [GREEDY, Sampling(seed=1), Sampling(seed=2, top_p=0.8, num_logprobs=3), Sampling(temperature=0.0, presence_penalty=3.0)]
    rows, places = [row(one, outputs=range(0, 203, 2)) for one in settings], [29, 3, 3, 17]
    draws = Draws.of([Asked(one, position) for position, one in enumerate(rows)])

    together = draw(rig.model, hidden, places, draws, rig.bases, most_rows=most_rows)

    assert rig.engine is not None
    assert together == draw_of(rig.engine, rig.model.logits(hidden, places, rig.bases), draws)
    rig.close()


def test_tokens_outside_of_the_vocabulary_are_refused(engines: Engines) -> None:
    logits = torch.zeros(1, 10)

    for asked in (Asked(row(GREEDY), 3, given=10), Asked(row(Sampling(repetition_penalty=2.0), seen=[10]), 3)):
        with pytest.raises(StepInvalid):
            draw_of(engines.all[0], logits, Draws.of([asked]))
