"""What do quantized weights and pages cost in quality? Bits per byte of the shipped model on files that it was not trained on.

It is quantized while it is loaded, or comes in the formats of quantized checkpoints, rounded to the nearest (`bench.checkpoints`).

Each file stands alone, in windows of 1023 tokens that move by 512 (`examples.demo_model.evaluation`), scored by the CPU driver as a daemon
would score them. The text is the held-out part of the standard library of the Python that runs this; that of 3.11.7 is what the model's
own figure, 0.724, was measured on. `--bytes` takes fewer of the files.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from bench.checkpoints import FORMATS, GGUF_TYPES, write_format, write_gguf
from bench.report import Figure, at_most, publish
from drivers.contract import InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling
from drivers.cpu import CpuDriver
from examples.demo_model.chat import BOS, EOS
from examples.demo_model.corpus import Document, library_root, read_documents
from examples.demo_model.evaluation import windows_of
from examples.demo_model.tokenizer import token_id

MODEL = Path(__file__).resolve().parent.parent / "examples" / "demo_model"
CONTEXT, STRIDE = 1023, 512
GRANULE_BYTES, PAGE_TOKENS, SLAB_BYTES, NUM_SLABS = 1024, 16, 4 << 20, 24


@dataclass(frozen=True, slots=True)
class Kept:
    """How weights and pages are kept."""

    dtype: str
    quant: str = ""
    kv_quant: str = ""
    most_percent: float = 0.0  # that perplexity may rise by; 0: no goal
    form: str = ""  # of a checkpoint; "": as it is shipped
    path: Path = MODEL

    @property
    def name(self) -> str:
        """As the table shows it."""
        if self.form:
            return f"checkpoint in {self.form}"
        return f"weights {self.quant or self.dtype}, pages {self.kv_quant or self.dtype}"


BASE = Kept("float32")
OTHERS = (
    Kept("bfloat16", most_percent=0.1),
    Kept("bfloat16", "", "int8", most_percent=0.2),
    Kept("bfloat16", "", "fp8", most_percent=0.5),
    Kept("bfloat16", "int8", most_percent=0.5),
    Kept("bfloat16", "int8", "int8", most_percent=0.5),
    Kept("bfloat16", "int4", most_percent=5.0),
)


FORM_GOALS = {
    "FP8 in blocks of 128": 1.0, "FP8 by row": 1.0, "FP8 by tensor": 1.0, "compressed-tensors W8A8": 0.5, "compressed-tensors W4A16": 5.0,
    "GPTQ int4": 5.0, "AWQ int4": 5.0, "GGUF Q8_0": 0.5, "GGUF Q6_K": 1.0, "GGUF Q4_K": 5.0, "GGUF Q4_0": 5.0,
}  # fmt: skip


def checkpoints(folder: Path) -> Iterator[Kept]:
    """The shipped model in every format of a checkpoint, written there."""
    for idx, form in enumerate(FORMATS):
        yield Kept("bfloat16", most_percent=FORM_GOALS[form], form=form, path=write_format(MODEL, form, folder / str(idx)))
    for kind in GGUF_TYPES:
        form = f"GGUF {kind.name}"
        yield Kept("bfloat16", most_percent=FORM_GOALS[form], form=form, path=write_gguf(MODEL, kind, folder / kind.name))


class Scorer:
    """The shipped model in a driver of its own."""

    def __init__(self, kept: Kept) -> None:
        """Open and load."""
        self._driver = CpuDriver()
        self._driver.open(OpenSpec(NUM_SLABS, SLAB_BYTES, GRANULE_BYTES, PAGE_TOKENS, 1, CONTEXT + 1, dtype=kept.dtype), None)
        source = InspectSpec(str(kept.path), quant=kept.quant, kv_quant=kept.kv_quant)
        model = self._driver.inspect(source)
        offsets, end = [], 0
        for segment in model.segments:
            offsets.append(end)
            end += -(-segment.size_bytes // GRANULE_BYTES) * GRANULE_BYTES
        self._driver.load(LoadSpec(1, source, tuple(range(1, 1 + len(model.groups))), tuple(offsets)), lambda _done, _total: None)
        self._frames = tuple(_frames(end, group.frame_bytes) for group in model.groups)
        self._seq = 0

    def nats(self, tokens: list[int], first: int) -> float:
        """Minus the log-probabilities of tokens[first:], in sum."""
        self._seq += 1
        start = RowStart(0, 1, 0, tuple(tokens), self._frames, Sampling(temperature=0.0), score_from=first)
        clears, runs = (0,) if self._seq > 1 else (), (RowRun(0, len(tokens)),)
        self._driver.apply(Plan(boot_generation=1, seq=self._seq, clears=clears, starts=(start,), runs=runs, num_steps=1))
        [row] = self._driver.step(0).rows
        if row.error or len(row.logprobs) != len(tokens) - first:
            raise RuntimeError(f"{len(row.logprobs)} of {len(tokens) - first} tokens were scored: {row.error}")
        return -sum(scored.logprob for scored in row.logprobs)

    def close(self) -> None:
        """Give the memory back."""
        self._driver.close()


def _frames(start: int, frame_bytes: int) -> tuple[int, ...]:
    """Frames for a whole context, behind the weights."""
    first, size = start // GRANULE_BYTES, frame_bytes // GRANULE_BYTES
    return tuple(first + page * size for page in range(-(-(CONTEXT + 1) // PAGE_TOKENS)))


def pieces(documents: list[Document]) -> Iterator[tuple[list[int], int]]:
    """Tokens of each window, and the first of them that is scored."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    bos, eos = token_id(tokenizer, BOS), token_id(tokenizer, EOS)
    for document in documents:
        ids = [bos, *tokenizer.encode(document.text, add_special_tokens=False).ids, eos]
        for window in windows_of(ids, CONTEXT, STRIDE):
            scored = sum(target >= 0 for target in window.targets)
            yield [*window.inputs, window.targets[-1]], len(window.inputs) + 1 - scored


def nats_of(kept: Kept, windows: list[tuple[list[int], int]]) -> float:
    """What all windows cost."""
    scorer = Scorer(kept)
    try:
        return sum(scorer.nats(tokens, first) for tokens, first in windows)
    finally:
        scorer.close()


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--bytes", type=int, default=1 << 62, help="stop after so many bytes of text")
    options = parser.parse_args()
    documents, size = [], 0
    for document in read_documents(library_root()):
        if document.is_held_out and size < options.bytes:
            documents.append(document)
            size += document.size_bytes
    windows = list(pieces(documents))
    num_tokens = sum(len(tokens) - first for tokens, first in windows)
    base = nats_of(BASE, windows)
    figures = [Figure(f"{BASE.name}, {size} bytes", base / math.log(2) / size, "bits/byte")]
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as folder:
        for kept in (*OTHERS, *checkpoints(Path(folder))):
            nats = nats_of(kept, windows)
            figures.append(Figure(kept.name, nats / math.log(2) / size, "bits/byte"))
            change = 100 * math.expm1((nats - base) / num_tokens)
            figures.append(at_most(f"  perplexity over {BASE.name}", change, kept.most_percent, "%"))
    publish("perplexity", "Quality of quantized weights and pages, the shipped model on held-out files", figures, options.json)


if __name__ == "__main__":
    main()
