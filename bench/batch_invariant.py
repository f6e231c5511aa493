"""What does `drivers.batch_invariant` cost? 135M shape in bf16, with and without it in turn, round by round, natively and in torch.

Native code computes a token alike in any company anyway, so there is nothing to switch, and nothing to pay: at most 3 %, which is noise.
In torch, which runs what native code does not cover, tokens go through the model in tiles of their own; that has no goal. A context of 16
tokens goes on with so many more, of one row and of several at once; and a prompt of 512 tokens is read.
"""

from __future__ import annotations

from bench.report import Figure, at_most, json_path, publish
from bench.twins import turns, twins

GOAL = 1.03  # times as long, natively
TORCH = ('drivers.options={ native = "off" }',)


def main() -> None:
    """Measure, print and keep."""
    figures: list[Figure] = []
    for name, settings, output_tokens, rounds in (("native", (), 64, 7), ("torch", TORCH, 12, 3)):
        with twins(settings, "drivers.batch_invariant=false", "drivers.batch_invariant=true") as runs:
            for each in turns(runs, output_tokens, rounds):
                note = f"{1e3 * each.first_s:.0f} ms without, {1e3 * each.second_s:.0f} ms with"
                what = f"{name}, {each.task}, times as long"
                is_native = name == "native"
                figures.append(at_most(what, each.ratio, GOAL, "x", note) if is_native else Figure(what, each.ratio, "x", note=note))
    publish("batch_invariant", "What bits that depend on no other row cost, 135M shape in bf16", figures, json_path())


if __name__ == "__main__":
    main()
