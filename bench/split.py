"""What does it cost to lie on several devices? 135M shape in bf16, on the host's processor as one device and as two halves, in turn.

Both halves compute on the same threads, one after the other, so what is seen is the price of hidden states that go round and of calls that
are cut in two. Goal: at most 1.1 times as long.
"""

from __future__ import annotations

from bench.report import at_most, json_path, publish
from bench.twins import turns, twins

OUTPUT_TOKENS, ROUNDS = 64, 7
GOAL = 1.1


def main() -> None:
    """Measure, print and keep."""
    with twins((), "drivers.use=cpu", "drivers.use=split") as runs:
        figures = [
            at_most(
                f"{each.task}, times as long",
                each.ratio,
                GOAL,
                "x",
                f"{1e3 * each.first_s:.0f} ms whole, {1e3 * each.second_s:.0f} ms in halves",
            )
            for each in turns(runs, OUTPUT_TOKENS, ROUNDS)
        ]
    publish("split", "A model on two halves of a processor, 135M shape in bf16", figures, json_path())


if __name__ == "__main__":
    main()
