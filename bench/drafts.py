"""What does guessing ahead save, and what does it cost where guesses are wrong? One stream, each pair of runs interleaved.

The shipped model goes on with a text that repeats, greedily, with and without look-up; a model of the 360M shape with random weights is
helped by one of the 135M shape that is never right. The output is compared in every round: it has to be the same.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from bench.daemon import ROOT, running_daemon
from bench.report import Figure, at_least, json_path, publish
from bench.shapes import make_135m, make_360m, prompt
from kerneld_client import aio

ROUNDS = 7
OUTPUT_TOKENS = 192
TEXT = "".join(f"def area_{idx}(width: int, height: int) -> int:\n    return width * height + {idx}\n\n\n" for idx in range(6))


async def answer(k: aio.Client, model: str, given: str | list[int], **options: object) -> tuple[float, list[int], float]:
    """Seconds that an answer took, its tokens, and the share of the guesses that were right."""
    context = await k.alloc(model)
    asked = {"tokens": given} if isinstance(given, list) else {}
    began = time.perf_counter()
    stream = context.infer(*([given] if isinstance(given, str) else []), max_tokens=OUTPUT_TOKENS, ignore_eos=True, **asked, **options)  # type: ignore[arg-type]
    result = await stream.result()
    seconds = time.perf_counter() - began
    await context.free()
    drafted = result.usage.drafted_tokens
    return seconds, list(result.tokens), result.usage.accepted_tokens / drafted if drafted else 0.0


async def pair(k: aio.Client, model: str, given: str | list[int], **drafting: object) -> tuple[float, float]:
    """How many times as fast an answer is with guesses, and the share of them that was right. Raises: RuntimeError, if it differs."""
    ratios, shares = [], []
    for _turn in range(ROUNDS + 1):
        plain_s, plain, _share = await answer(k, model, given, temperature=0)
        seconds, tokens, share = await answer(k, model, given, temperature=0, **drafting)
        if tokens != plain:
            raise RuntimeError(f"{model} gave another answer with guesses")
        ratios.append(plain_s / seconds)
        shares.append(share)
    return statistics.median(ratios[1:]), statistics.median(shares[1:])


async def measure(socket: Path, folder: Path) -> list[Figure]:
    """All pairs."""
    async with await aio.connect(socket) as k:
        for path, name in ((ROOT / "examples" / "demo_model", "demo"), (make_360m(folder), "360m"), (make_135m(folder), "135m")):
            await k.load(str(path), name=name)
        repeats, right = await pair(k, "demo", TEXT, draft_tokens=8)
        found, right_found = await pair(k, "360m", prompt(1, 64), draft_tokens=4)
        helped, right_helped = await pair(k, "360m", prompt(1, 64), draft_tokens=4, draft_model="135m")
    return [
        at_least("look-up, text that repeats", repeats, 1.5, "x", f"{100 * right:.0f} % of the guesses were right"),
        at_least("look-up, text of a random model", found, 0.95, "x", f"{100 * right_found:.0f} % right"),
        at_least("a model that knows nothing of it", helped, 0.8, "x", f"{100 * right_helped:.0f} % right"),
    ]


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        folder = Path(name)
        settings = ["drivers.dtype=bfloat16", "memory.device_bytes=3GiB", "memory.host_bytes=512MiB"]
        with running_daemon(folder, *settings) as socket:
            figures = asyncio.run(measure(socket, folder))
    publish("drafts", "Guessing ahead, one stream in bf16", figures, json_path())


if __name__ == "__main__":
    main()
