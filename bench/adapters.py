"""What do adapters cost? Decode steps of 16 rows of the 135M shape with 1, 4 and 16 LoRA adapters among them, beside the same without any.

All linears are adapted. The driver runs alone, without a front; quanta of the variants follow one another in turn, and the overhead is
the median over the rounds of a variant's time over that of the rows without adapters in the same round.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.report import Figure, json_path, publish
from bench.shapes import HEAD_DIM, HIDDEN, INTERMEDIATE, KV_HEADS, LAYERS, make_135m, prompt
from drivers.contract import InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling
from drivers.cpu import CpuDriver

NUM_ROWS, PROMPT_TOKENS, QUANTUM, ROUNDS = 16, 128, 4, 9
NUM_ADAPTERS = (0, 1, 4, 16)
RANKS = (8, 16)
PAGE_TOKENS, GRANULE, SLAB = 16, 4096, 2 << 20
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KV_HEADS * HEAD_DIM),
    "self_attn.v_proj": (HIDDEN, KV_HEADS * HEAD_DIM),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INTERMEDIATE),
    "mlp.up_proj": (HIDDEN, INTERMEDIATE),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}


def make_adapter(folder: Path, rank: int, seed: int) -> Path:
    """Write an adapter of every linear of the 135M shape in PEFT form, and return its path."""
    path = folder / f"r{rank}-{seed}"
    path.mkdir()
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, (columns, rows) in LINEARS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}."
            tensors[prefix + "lora_A.weight"] = torch.randn(rank, columns, generator=random) * 0.02
            tensors[prefix + "lora_B.weight"] = torch.randn(rows, rank, generator=random) * 0.02
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"})
    )
    return path


class Bench:
    """The CPU driver with the model, 16 adapters, and rows for every variant."""

    def __init__(self, model: Path, adapters: list[Path], dtype: str) -> None:
        self._driver = CpuDriver()
        slots = NUM_ROWS * len(NUM_ADAPTERS)
        spec = OpenSpec((2 << 30) // SLAB, SLAB, GRANULE, PAGE_TOKENS, slots, NUM_ROWS * PROMPT_TOKENS, dtype=dtype)
        self._driver.open(spec, None)
        self._end = 0
        source = InspectSpec(str(model))
        told = self._driver.inspect(source)
        self._driver.load(LoadSpec(1, source, (1,), tuple(self._take(part.size_bytes) for part in told.segments)), _unheard)
        self._frame_bytes = told.groups[0].frame_bytes
        self.adapter_bytes = 0
        for number, path in enumerate(adapters):
            source = InspectSpec(str(path), base=str(model))
            self.adapter_bytes = self._driver.inspect(source).segments[0].size_bytes
            place = self._take(self.adapter_bytes)
            self._driver.load(LoadSpec(2 + number, source, (), (place,), base_id=1), _unheard)
        self._seq = 0

    def begin(self, variant: int) -> range:
        """Seat the rows of a variant and read their prompts; the adapters take turns among the rows."""
        num_adapters = NUM_ADAPTERS[variant]
        slots = range(variant * NUM_ROWS, (variant + 1) * NUM_ROWS)
        num_pages = -(-(PROMPT_TOKENS + QUANTUM * (ROUNDS + 2)) // PAGE_TOKENS)
        starts = []
        for row, slot in enumerate(slots):
            frames = tuple(self._take(self._frame_bytes) // GRANULE for _ in range(num_pages))
            tokens = tuple(prompt(row, PROMPT_TOKENS))
            adapter_id = 2 + row % num_adapters if num_adapters else 0
            starts.append(RowStart(slot, 1, 0, tokens, (frames,), Sampling(temperature=0.0), adapter_id=adapter_id))
        self._run(slots, 1, PROMPT_TOKENS, tuple(starts))
        return slots

    def step(self, slots: range) -> float:
        """Seconds of one step of rows that decode, the median of a quantum."""
        return self._run(slots, QUANTUM, 1)

    def close(self) -> None:
        """Give the memory back."""
        self._driver.close()

    def _run(self, slots: range, num_steps: int, num_tokens: int, starts: tuple[RowStart, ...] = ()) -> float:
        self._seq += 1
        runs = tuple(RowRun(slot, num_tokens) for slot in slots)
        self._driver.apply(Plan(1, self._seq, starts=starts, runs=runs, num_steps=num_steps))
        return statistics.median(self._driver.step(idx).compute_s for idx in range(num_steps))

    def _take(self, size_bytes: int) -> int:
        start, self._end = self._end, self._end + -(-size_bytes // GRANULE) * GRANULE
        return start


def _unheard(_done: int, _total: int) -> None:
    """Progress that nobody follows."""


def measure(model: Path, adapters: list[Path], rank: int) -> list[Figure]:
    """The figures of one rank."""
    bench = Bench(model, adapters, "bfloat16")
    try:
        variants = [bench.begin(variant) for variant in range(len(NUM_ADAPTERS))]
        for slots in variants:
            bench.step(slots)
        rounds = [[bench.step(slots) for slots in variants] for _ in range(ROUNDS)]
    finally:
        bench.close()
    plain = 1000 * statistics.median(times[0] for times in rounds)
    figures = [Figure(f"step of {NUM_ROWS} rows without adapters, beside rank {rank}", plain, "ms")]
    for idx, num_adapters in enumerate(NUM_ADAPTERS[1:], 1):
        overhead = 100 * (statistics.median(times[idx] / times[0] for times in rounds) - 1)
        figures.append(Figure(f"overhead of {num_adapters} adapter{'s' * (num_adapters > 1)} of rank {rank}", overhead, "%"))
    figures.append(Figure(f"an adapter of rank {rank} in the arena", bench.adapter_bytes / (1 << 20), "MiB"))
    return figures


def main() -> None:
    """Measure, print and keep."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as name:
        model = make_135m(Path(name))
        for rank in RANKS:
            figures += measure(model, [make_adapter(Path(name), rank, seed) for seed in range(max(NUM_ADAPTERS))], rank)
    publish("adapters", f"LoRA adapters among {NUM_ROWS} rows, 135M shape in bf16, all linears, decode steps", figures, json_path())


if __name__ == "__main__":
    main()
