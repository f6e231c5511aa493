"""What does it cost to move pages, and to come back to a context that was moved out? 135M shape in bf16.

copies       swap out and in beside memcpy of the same bytes on the same thread: >= 80 % without checksums, >= 50 % with them
beside rows  copies without end, throttled, make 8 generating rows slower by at most 15 %
return       time to first token of an idle context by where its pages are; from host >= 50x and from disk >= 10x faster than its prefill
choice       the way that was chosen is the cheapest one in >= 95 % of the cases
forks        1,000 forks of one context of 1,000 tokens: < 1 ms each, and memory for their own tokens alone
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kerneld_client
from bench.daemon import running_daemon
from bench.report import Figure, at_least, at_most, json_path, publish
from bench.shapes import make_135m, prompt
from bench.swap_copies import SHAPE, measure_copies, measure_slowdown
from kerneld_client import Client, Context
from kerneld_client.memory_values import PathDecision

LENGTHS = (64, 250, 1000)
FILLERS = 6  # of 1,000 tokens; the device holds five
PARTIAL = 1  # the page that is not full goes last: it has no copy below
PUSHES = 4  # rounds of them, at most
ROUNDS = 9
FORKS, RUNNING_FORKS, FORK_TOKENS = 1000, 20, 8
SETTINGS = (
    "drivers.dtype=bfloat16",
    "memory.device_bytes=384MiB",
    "memory.host_bytes=1GiB",
    "memory.page_file_bytes=1GiB",
)
WAYS = ("device", "host", "disk", "recompute")


class Idle:
    """A context that somebody comes back to, and others that push it off the device."""

    def __init__(self, client: Client, num_tokens: int, fillers: list[Context]) -> None:
        self._client = client
        self._num_tokens = num_tokens
        self._fillers = fillers
        self._seeds: Iterator[int] = iter(range(num_tokens * 1000, num_tokens * 1000 + 1000))
        self.context = client.alloc("135m")
        first_token_s(self.context, prompt(next(self._seeds), num_tokens))
        self.took: dict[str, list[float]] = {way: [] for way in WAYS}

    def turn(self) -> None:
        """Come back once from everywhere."""
        first_token_s(self.context, prompt(next(self._seeds), 1))  # the others have pushed it off the device since
        leave: dict[str, Callable[[], None]] = {"device": lambda: None, "host": self._to_host, "disk": self._to_disk}
        for way, go in leave.items():
            go()
            pages = self.context.stat().pages
            where = {"device": pages.device, "host": pages.host, "disk": pages.disk}
            if where[way] == 0 or (way != "device" and pages.device > PARTIAL):
                raise RuntimeError(f"a context of {self._num_tokens} tokens is not on {way}: {pages}")
            self.took[way].append(first_token_s(self.context, prompt(next(self._seeds), 1)))
        fresh = self._client.alloc("135m")
        self.took["recompute"].append(first_token_s(fresh, prompt(next(self._seeds), self._num_tokens)))
        fresh.free()

    def first_token_s(self, way: str) -> float:
        """Median seconds to the first token."""
        return statistics.median(self.took[way])

    def return_s(self, way: str) -> float:
        """What a way costs beyond the step that comes after it, by the client's clock; no less than the daemon says."""
        told = [decision.measured_s or 0.0 for decision in self.decisions() if decision.chosen == way]
        return max(self.first_token_s(way) - self.first_token_s("device"), statistics.median(told) if told else 0.0)

    def decisions(self) -> list[PathDecision]:
        """How the daemon says that it brought this context back."""
        return [each for each in self._client.memory(num_decisions=1000).decisions if each.context_id == self.context.id]

    def _to_host(self) -> None:
        for _ in range(PUSHES):
            for filler in self._fillers:
                first_token_s(filler, [11])
            if self.context.stat().pages.device <= PARTIAL:
                return

    def _to_disk(self) -> None:
        self.context.suspend(to_disk=True)
        self.context.resume()


def first_token_s(context: Context, tokens: list[int]) -> float:
    """Seconds from an infer to the end of its only token."""
    started_at = time.perf_counter()
    context.infer(tokens=tokens, max_tokens=1, temperature=0, ignore_eos=True).result()
    return time.perf_counter() - started_at


def measure_returns(k: Client) -> list[Figure]:
    """Time to first token by tier, the factors to prefill, and whether the cheapest way was chosen."""
    fillers = [k.alloc("135m") for _ in range(FILLERS)]
    for seed, filler in enumerate(fillers):
        first_token_s(filler, prompt(seed, 1000))
    idles = {num_tokens: Idle(k, num_tokens, fillers) for num_tokens in LENGTHS}
    for _ in range(ROUNDS):
        for idle in idles.values():
            idle.turn()
    longest = idles[max(LENGTHS)]
    figures = [Figure(f"first token of an idle context of 1,000 tokens, {way}", 1e3 * longest.first_token_s(way), "ms") for way in WAYS]
    prefill_s = longest.return_s("recompute")
    for way, factor in (("host", 50.0), ("disk", 10.0)):
        note = f"{1e3 * longest.return_s(way):.2f} ms of {1e3 * prefill_s:.0f} ms, both beyond the step on the device"
        figures.append(at_least(f"prefill / return from {way}, 1,000 tokens", prefill_s / longest.return_s(way), factor, "x", note))
    figures += choices(idles)
    for context in [*fillers, *(idle.context for idle in idles.values())]:
        context.free()
    return figures


def choices(idles: dict[int, Idle]) -> list[Figure]:
    """Of the decisions about idle contexts, those whose way was the cheapest one."""
    right, errors = [], []
    for idle in idles.values():
        return_s = {way: idle.return_s(way) for way in WAYS}
        for decision in idle.decisions():
            ways = {decision.chosen, decision.alternative}
            if ways not in ({"host", "recompute"}, {"disk", "recompute"}):
                continue
            right.append(return_s[decision.chosen] <= return_s[decision.alternative])
            if decision.measured_s and decision.cost_s:
                errors.append(decision.cost_s / decision.measured_s)
    note = f"{len(right)} decisions over {', '.join(map(str, LENGTHS))} tokens"
    return [
        at_least("the way chosen was the cheapest", 100 * statistics.mean(right), 95.0, "%", note),
        Figure("cost predicted / measured, median", statistics.median(errors), "x"),
    ]


def measure_forks(k: Client) -> list[Figure]:
    """Milliseconds of each of 1,000 forks, and what they and those that go on hold."""
    parent = k.alloc("135m")
    first_token_s(parent, prompt(1, 1000))
    before = device_bytes(k)
    took, forks = [], []
    for _ in range(FORKS):
        started_at = time.perf_counter()
        forks.append(parent.fork())
        took.append((time.perf_counter() - started_at) * 1e3)
    forked = device_bytes(k)
    for seed, fork in enumerate(forks[:RUNNING_FORKS]):
        fork.infer(tokens=prompt(seed, 1), max_tokens=FORK_TOKENS, temperature=0, ignore_eos=True).result()
    grown = (device_bytes(k) - forked) / SHAPE.size_bytes
    own_pages = RUNNING_FORKS * (-(-(1001 % 16 + 1 + FORK_TOKENS) // 16))  # from the page on that it shares in part
    for context in [parent, *forks]:
        context.free()
    return [
        at_most(
            f"one of {FORKS} forks by RPC, 1,000 tokens", statistics.median(took), 1.0, "ms", f"99 of 100 below {percentile(took):.2f} ms"
        ),
        at_most(f"device KV that {FORKS} forks add", (forked - before) / SHAPE.size_bytes, 0.0, "pages"),
        at_most(f"device KV that {RUNNING_FORKS} of them add with {FORK_TOKENS} tokens, over their own pages", grown / own_pages, 1.0, "x"),
    ]


def device_bytes(k: Client) -> int:
    """KV bytes on the device."""
    return sum(k.top().tiers[0].kv_bytes.values())


def percentile(took: list[float]) -> float:
    """The value that 99 of 100 stay below."""
    return statistics.quantiles(took, n=100)[98]


def main() -> None:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        folder = Path(name)
        path = make_135m(folder)
        figures = measure_copies() + measure_slowdown(path)
        with running_daemon(folder, *SETTINGS) as socket, kerneld_client.connect(socket) as k:
            k.load(str(path), name="135m")
            figures += measure_returns(k) + measure_forks(k)
    publish("swap", "Pages between the tiers, 135M shape in bf16", figures, json_path())


if __name__ == "__main__":
    main()
