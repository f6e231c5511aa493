"""Does a machine hold many times more contexts than its device memory, and what does that cost?

32 contexts of 1,000 tokens (135M shape, float32), each touched at random: a touch appends one token and samples one.

all of them    KV is 8x what the device holds: 2,000 touches, every sampled token that of a daemon where all KV fits, no failure
2x             the contexts touched have twice the KV that the device holds: tokens/s beside the daemon where all fits, >= 60 %
"""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import kerneld_client
from bench.daemon import running_daemon
from bench.report import Figure, at_least, json_path, publish
from bench.shapes import make_135m, prompt
from kerneld_client import Client, Context

CONTEXTS = 32
TOKENS = 1000
TOUCHES = 2000
CLIENTS = 4  # each touches contexts of its own, so that a context's tokens do not depend on who is faster
OVERSUBSCRIPTION = 8
WORKING_SET = 2  # times the device's KV
ROUNDS = 5
ROUND_TOUCHES = 200

SLAB = 16 << 20  # 22 frames of 720 KiB: 3 % of it is waste, where a slab of 4 MiB would have 12 %
PAGE_BYTES = 30 * 16 * 2 * 3 * 64 * 4  # layers x tokens x keys and values x heads x items x bytes
CONTEXT_PAGES = -(-(TOKENS + 2 * TOUCHES // CONTEXTS) // 16)
WEIGHT_BYTES = 560 << 20


@dataclass(frozen=True, slots=True)
class Bed:
    """A daemon with all contexts prefilled."""

    client: Client
    contexts: list[Context]


def kv_slabs(num_contexts: float) -> int:
    """Slabs that hold the KV of so many contexts."""
    return -(-int(num_contexts * CONTEXT_PAGES) // (SLAB // PAGE_BYTES))


def settings(num_contexts: float, host_bytes: int) -> list[str]:
    """A daemon whose device holds the KV of so many contexts."""
    device = (-(-WEIGHT_BYTES // SLAB) + kv_slabs(num_contexts)) * SLAB
    return ["drivers.dtype=float32", f"memory.slab_bytes={SLAB}", f"memory.device_bytes={device}", f"memory.host_bytes={host_bytes}"]


def prefilled(client: Client, model: Path) -> Bed:
    """Load the model and give every context its 1,000 tokens."""
    client.load(str(model), name="135m")
    contexts = [client.alloc("135m", seed=1) for _ in range(CONTEXTS)]
    for seed, context in enumerate(contexts):
        context.infer(tokens=prompt(seed, TOKENS), max_tokens=1, temperature=0, ignore_eos=True).result()
    return Bed(client, contexts)


def touch_all(bed: Bed, seed: int, num_touches: int, among: int) -> tuple[list[list[int]], float]:
    """Touch the first `among` contexts at random; returns the sampled tokens by context, and seconds."""
    sampled: list[list[int]] = [[] for _ in bed.contexts]
    start = threading.Barrier(CLIENTS)

    def run(client: int) -> None:
        choose = random.Random(seed * CLIENTS + client)
        mine = range(client, among, CLIENTS)
        start.wait()
        for _ in range(num_touches // CLIENTS):
            idx = choose.choice(mine)
            stream = bed.contexts[idx].infer(tokens=[choose.randrange(10, 40000)], max_tokens=1, temperature=0, ignore_eos=True)
            sampled[idx] += stream.result().tokens

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(run, range(CLIENTS)))
    return sampled, time.perf_counter() - began


def measure_all(tight: Bed, wide: Bed) -> list[Figure]:
    """All contexts at random on both daemons."""
    expected, wide_s = touch_all(wide, 7, TOUCHES, CONTEXTS)
    found, tight_s = touch_all(tight, 7, TOUCHES, CONTEXTS)
    num_equal = sum(a == b for one, other in zip(expected, found, strict=True) for a, b in zip(one, other, strict=True))
    return [
        at_least(f"sampled tokens equal, KV {OVERSUBSCRIPTION}x the device, of {TOUCHES}", num_equal, TOUCHES, "tokens"),
        Figure(f"tokens/s, KV {OVERSUBSCRIPTION}x the device", TOUCHES / tight_s, "tok/s"),
        Figure("tokens/s, all on the device", TOUCHES / wide_s, "tok/s"),
        Figure("of the speed of all on the device", 100 * wide_s / tight_s, "%"),
    ]


def measure_working_set(tight: Bed, wide: Bed) -> list[Figure]:
    """A working set of twice the device on both daemons, in turns."""
    among = CONTEXTS // OVERSUBSCRIPTION * WORKING_SET
    ratios = []
    for turn in range(ROUNDS + 1):
        _, wide_s = touch_all(wide, 100 + turn, ROUND_TOUCHES, among)
        _, tight_s = touch_all(tight, 100 + turn, ROUND_TOUCHES, among)
        if turn:  # the first one brings the working set in
            ratios.append(100 * wide_s / tight_s)
    what = f"of the speed of all on the device, working set {WORKING_SET}x"
    return [at_least(what, statistics.median(ratios), 60, "%", f"{min(ratios):.0f} to {max(ratios):.0f}")]


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        root = Path(name)
        model = make_135m(root)
        folders = [root / "tight", root / "wide"]
        for folder in folders:
            folder.mkdir()
        host_bytes = (kv_slabs(CONTEXTS * 1.2)) * SLAB
        tight_settings, wide_settings = settings(CONTEXTS / OVERSUBSCRIPTION, host_bytes), settings(CONTEXTS * 1.1, 0)
        with (
            running_daemon(folders[0], *tight_settings, model_root=root) as tight_socket,
            running_daemon(folders[1], *wide_settings, model_root=root) as wide_socket,
            kerneld_client.connect(tight_socket) as tight_client,
            kerneld_client.connect(wide_socket) as wide_client,
        ):
            tight, wide = prefilled(tight_client, model), prefilled(wide_client, model)
            figures = measure_all(tight, wide) + measure_working_set(tight, wide)
    publish("oversubscription", "Oversubscription, 135M shape in float32", figures, json_path())


if __name__ == "__main__":
    main()
