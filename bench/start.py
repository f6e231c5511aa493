"""How long after its start does a daemon answer with the first token of a model? 135M shape, weights in the page cache, kernels compiled.

From the start of the process: until it takes calls, until the model is loaded, until the first token is there. Goal: loaded within 3 s.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import kerneld_client
from bench.daemon import running_daemon
from bench.report import Figure, at_most, json_path, publish
from bench.shapes import make_135m, prompt

ROUNDS = 5
SETTINGS = ("drivers.dtype=bfloat16", "memory.device_bytes=2GiB", "memory.host_bytes=512MiB")


def start(folder: Path, model: Path) -> tuple[float, float, float]:
    """Seconds from the start of a new daemon until it takes calls, has the model, has given a token."""
    began = time.perf_counter()
    with running_daemon(folder, *SETTINGS, model_root=model.parent) as socket:
        answers_s = time.perf_counter() - began
        k = kerneld_client.connect(socket)
        k.load(str(model), name="135m")
        loaded_s = time.perf_counter() - began
        k.alloc("135m").infer(tokens=prompt(0, 16), max_tokens=1, ignore_eos=True).result()
        token_s = time.perf_counter() - began
        k.close()
    return answers_s, loaded_s, token_s


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        model = make_135m(Path(name) / "models")
        rounds = []
        for turn in range(ROUNDS + 1):
            folder = Path(name) / str(turn)
            folder.mkdir()
            rounds.append(start(folder, model))
    answers_s, loaded_s, token_s = (statistics.median(times) for times in zip(*rounds[1:], strict=True))  # the first one compiles
    figures = [
        Figure("until it takes calls", answers_s, "s"),
        at_most("until the model is loaded", loaded_s, 3.0, "s"),
        Figure("until the first token", token_s, "s"),
    ]
    publish("start", "From the start of a daemon, 135M shape in bf16", figures, json_path())


if __name__ == "__main__":
    main()
