"""The comparison with other engines: what is compared with whom, and what a ratio is taken of. No engine is started."""

from __future__ import annotations

from bench.inference import GOALS, compared, goals_with

TURN = {"one stream": 100.0, "first token": 200.0, "8 requests": 800.0, "32 requests": 1600.0}


def faster(times: float) -> dict[str, float]:
    """A turn of an engine so many times as fast."""
    return {task: value / times if task == "first token" else value * times for task, value in TURN.items()}


def test_every_goal_stands_where_all_its_peers_run() -> None:
    assert goals_with([name for goal in GOALS for name in (*goal.batch, *goal.single)]) == list(GOALS)


def test_a_peer_that_does_not_run_is_not_compared_with() -> None:
    [goal] = goals_with(["openvino bf16", "transformers bf16"])
    assert (goal.quant, goal.batch, goal.batch_goal) == ("", ("openvino bf16",), 1.05)


def test_a_ratio_is_of_the_best_peer_of_the_same_round() -> None:
    goals = goals_with(["openvino bf16", "vllm bf16"])
    found = {
        "kerneld bf16": [faster(2.0), faster(4.0), faster(3.0)],
        "openvino bf16": [faster(1.0), faster(2.0), faster(1.0)],
        "vllm bf16": [faster(0.5), faster(4.0), faster(2.0)],
    }
    figures = {figure.what: figure for figure in compared(found, goals)}
    ratio = figures["bf16, 8 requests, of the best of openvino bf16 and vllm bf16"]
    first = figures["bf16, time to the first token, of the best's"]
    assert (ratio.value, ratio.is_met) == (1.5, True), "the median of 2, 1 and 1.5"
    assert (round(first.value, 3), first.is_met) == (0.667, True)
