"""What every peer's process does: read a task from a line, generate, answer with the seconds that it took.

Runs in the peer's own environment, so it imports nothing but the standard library.

    {"prompts": [[1, 2, ...], ...], "num_output": 128}  ->  {"seconds": 1.5, "num_output": 128}

All prompts come at once, decoding is greedy, and no output ends early.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[list[int]], int], list[int]]  # prompts, output tokens -> how many tokens came for each


def serve(generate: Generate) -> None:
    """Answer tasks until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")  # libraries that print to the standard output do not disturb the answers
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print("{}", file=answers, flush=True)  # ready
    for line in sys.stdin:
        task = json.loads(line)
        began = time.perf_counter()
        counts = generate(task["prompts"], task["num_output"])
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "num_output": min(counts)}), file=answers, flush=True)
