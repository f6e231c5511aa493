"""A random walk over the contract: however rows are cut, mixed, interrupted and guessed for, they get the bits that they get alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from drivers.contract import InspectSpec, LoadSpec, RowResult, RowStart, Sampling
from tests.drivers.cpu_rig import GRANULE_BYTES, PAGE_TOKENS, TORCH, CpuRig, prompt_of, save_model

WANTED = 24  # tokens of each row
ROUNDS = 400  # far more than any walk needs
SAME, OTHER = 2, 3  # ids of models that guess: the rows' own, and one that is mostly wrong
SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, num_logprobs=2),
    Sampling(temperature=0.9, top_p=0.95, seed=7, num_logprobs=1),
    Sampling(temperature=1.2, seed=8, repetition_penalty=1.2, num_logprobs=0),
    Sampling(temperature=0.7, top_k=20, seed=9, num_logprobs=0),
)
# name: family, what its config changes, dtype, weights, options, whether the driver is asked for batch invariance
CASES: dict[str, tuple[str, Mapping[str, object], str, str, Mapping[str, str], bool]] = {
    "bfloat16": ("Llama", {}, "bfloat16", "", {}, False),
    "int8": ("Qwen3", {}, "bfloat16", "int8", {}, False),
    "int4": ("Llama", {"intermediate_size": 128}, "bfloat16", "int4", {}, False),
    "windows": (
        "Gemma3",
        {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "bfloat16",
        "",
        {},
        False,
    ),
    "torch": ("Llama", {"num_hidden_layers": 1}, "bfloat16", "", TORCH, True),
}


@dataclass
class Told:
    """What a row was told so far."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, tuple[tuple[int, float], ...]]] = field(default_factory=list)

    def hear(self, result: RowResult) -> None:
        """Note a step's result."""
        assert not result.error
        self.tokens += result.tokens
        self.logprobs += [(one.logprob, one.top) for one in result.logprobs]

    def first(self, num: int) -> tuple[list[int], list[tuple[float, tuple[tuple[int, float], ...]]]]:
        """The first tokens, and what was said of them."""
        return self.tokens[:num], self.logprobs[:num]


def load_beside(rig: CpuRig, directory: Path, model_id: int) -> None:
    """Load one more model, on frames that are free."""
    source = InspectSpec(str(directory), quant=rig.quant)
    told = rig.driver.inspect(source)
    sizes = [-(-segment.size_bytes // GRANULE_BYTES) for segment in told.segments]
    first = max(rig.free) - sum(sizes)
    rig.free = [frame for frame in rig.free if frame < first - 16]  # which is more than a frame takes
    offsets = tuple((first + sum(sizes[:idx])) * GRANULE_BYTES for idx in range(len(sizes)))
    spaces = tuple(range(100 * model_id, 100 * model_id + len(told.groups)))
    rig.driver.load(LoadSpec(model_id, source, spaces, offsets), lambda _done, _total: None)


def alone(rig: CpuRig, prompt: list[int], sampling: Sampling) -> Told:
    """The row by itself: its prompt at once, then one token in each plan."""
    told = Told()
    start = rig.start(0, prompt, sampling, WANTED)
    told.hear(rig.run([(0, len(prompt))], starts=[start])[0][0])
    while len(told.tokens) < WANTED:
        told.hear(rig.run([(0, 1)])[0][0])
    rig.run([], 0, clears=(0,))
    rig.free += [frame for table in start.frames for frame in table]
    return told


class Walk:
    """Rows that run in every way that the contract has, as a seed decides."""

    def __init__(self, rig: CpuRig, prompts: list[list[int]], seed: int) -> None:
        self.rig = rig
        self.prompts = prompts
        self.seed = seed
        self.random = Random(seed)
        self.told = [Told() for _ in prompts]
        self.num_right = self.num_wrong = 0
        self._starts: dict[int, RowStart] = {}  # of the rows that sit, by row
        self._left: dict[int, int] = {}  # pending tokens of each
        self._kept: dict[int, tuple[tuple[tuple[int, ...], ...], int]] = {}  # pages of rows that left, and the tokens that they hold
        self._clears: list[int] = []

    def go(self) -> None:
        """Until every row has its tokens; the last plan gives back what is left."""
        for _ in range(ROUNDS):
            self.round()
            if all(len(told.tokens) >= WANTED for told in self.told):
                break
        for row in list(self._starts):
            self.leave(row)
        self.rig.run([], 0, clears=self._clears)
        self.rig.free += [frame for frames, _num_held in self._kept.values() for table in frames for frame in table]

    def known(self, row: int) -> list[int]:
        """Prompt and answer."""
        return [*self.prompts[row], *self.told[row].tokens]

    def round(self) -> None:
        """One plan: some rows leave, some start, some run for some steps."""
        unfinished = [row for row, told in enumerate(self.told) if len(told.tokens) < WANTED]
        for row in list(self._starts):
            if self.random.random() < 0.12:
                self.leave(row)
        starts = [self.start(row) for row in unfinished if row not in self._starts and self.random.random() < 0.7]
        runs = [row for row in unfinished if row in self._starts and self.random.random() < 0.7]
        counts = {row: self.random.choice([1, self.random.randint(1, self._left[row]), self._left[row]]) for row in runs}
        counts = {row: min(count, self._left[row]) for row, count in counts.items()}
        num_steps = self.random.randint(1, 4) if runs else 0
        slots = {self._starts[row].slot: row for row in runs}
        results = self.rig.run([(self._starts[row].slot, counts[row]) for row in runs], num_steps, starts, self._clears)
        self._clears = []
        for row, count in counts.items():
            self._left[row] = self._left[row] - count or 1
        for step in results:
            for slot, result in step.items():
                self.told[slots[slot]].hear(result)
                self.num_right += result.num_drafted - result.num_rejected
                self.num_wrong += result.num_rejected

    def start(self, row: int) -> RowStart:
        """On the pages that it has, or from the beginning on others, with the answer so far behind the prompt."""
        known, num_pages = self.known(row), -(-(len(self.prompts[row]) + WANTED + 4) // PAGE_TOKENS)
        frames, num_held = self._kept.pop(row, ((), 0))
        position = self.random.randint(0, num_held)
        free = sorted(set(range(8)) - {start.slot for start in self._starts.values()} - set(self._clears))
        start = RowStart(
            self.random.choice(free),
            1,
            position,
            tuple(known[position:]),
            frames or self.rig.tables(num_pages * PAGE_TOKENS),
            replace(SAMPLINGS[row], draft_tokens=self.random.choice([0, 1, 5])),
            history=tuple(known[:position]),
            output_start=len(self.prompts[row]),
            draft_model_id=self.random.choice([0, SAME, OTHER]),
        )
        self._starts[row], self._left[row] = start, len(start.tokens)
        return start

    def leave(self, row: int) -> None:
        """The row's slot goes to others, and so may its pages, as they are."""
        start = self._starts.pop(row)
        self._clears.append(start.slot)
        if self.random.random() < 0.5:
            self._kept[row] = start.frames, len(self.known(row)) - self._left[row]
            return
        self.rig.free += [frame for table in start.frames for frame in table]
        self.random.shuffle(self.rig.free)


@pytest.mark.parametrize("case", CASES)
def test_rows_get_the_same_bits_on_every_way(case: str, tmp_path: Path) -> None:
    family, changes, dtype, quant, options, is_asked = CASES[case]
    save_model(tmp_path, family, **changes)
    rig = CpuRig(tmp_path, dtype=dtype, quant=quant, options=options, is_batch_invariant=is_asked)
    load_beside(rig, tmp_path, SAME)
    save_model(tmp_path / "other", "Llama", num_hidden_layers=1, num_key_value_heads=6)
    load_beside(rig, tmp_path / "other", OTHER)
    prompts = [prompt_of(length, length) for length in (45, 1, 16, 30)] + [prompt_of(5) * 6]
    expected = [alone(rig, prompt, sampling) for prompt, sampling in zip(prompts, SAMPLINGS, strict=True)]
    walks = [Walk(rig, prompts, seed) for seed in range(4)]
    for walk in walks:
        walk.go()
        assert [told.first(WANTED) for told in walk.told] == [told.first(WANTED) for told in expected], walk.seed
    assert sum(walk.num_right for walk in walks)
    assert sum(walk.num_wrong for walk in walks)
    rig.driver.close()
