"""The model card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from string import Template

from examples.demo_model.metrics import Metrics
from examples.demo_model.model import ModelShape

CARD = Template("""---
license: other
license_name: psf-2.0
language: [en, code]
library_name: transformers
pipeline_tag: text-generation
---

# Demo model

A Llama of $parameters parameters that writes text in the manner of Python's standard library. It is here so that the
daemon can be tried, tested and measured without a download: real weights, a real tokenizer, and output that a reader
can tell from noise. It is far too small to know anything; do not run what it writes.

## Figures

All are from `metrics.json`, which the training script writes.$early

| | |
| --- | --- |
| held-out bits per byte | **$bpb** |
| of these: library files / test suites | $bpb_library / $bpb_tests |
| median over the files | $bpb_median |
| `xz -9` on the same files | $bpb_xz |
| steps / tokens read | $steps / $tokens_seen |
| training time | $minutes minutes on two CPU cores (shared with other work) |

Held-out bits per byte: every held-out file alone, its end token included, in windows of $context tokens that move by
$stride, with the bf16 weights of this folder. The mean goes by bytes, and a few long test files that repeat themselves hold
most of these: for prose-like library code take the figure of the library files, for a file at random the median.

![loss curve](loss.png)

The training context is 256 tokens for 60 % of the schedule, then 512, and 1024 for the last 18 %. The held-out points of
the curve come from every third file in windows of 1024 that do not overlap; until the last phase the model meets positions
there that it was not trained at, and pays for them.

## Data

The `.py` files of the standard library of CPython $python with its test suites ($train_files files,
$train_megabytes MB, $train_tokens tokens), and for each documented function of up to 1500 characters a chat: the
docstring is the question, the source is the answer. Left out: installed packages, files that are not UTF-8, and the
character tables in `encodings` that a tool wrote. Held out: $held_files whole files ($held_kilobytes kB), chosen by the
hash of their path. Some text (licence heads, idioms of a package) is in files on both sides, as in any code base.

CPython is under the [PSF licence](https://docs.python.org/3/license.html), © Python Software Foundation; a few modules
carry their authors' own notices. The weights are derived from that text.

## Shape

$shape

Tokenizer: byte-level BPE, $vocab_size tokens. Special tokens: `<|bos|>` 0, `<|eos|>` 1, `<|im_start|>` 2, `<|im_end|>` 3.
Chat: `<|bos|><|im_start|>user\\nWrite the function ...<|im_end|>\\n<|im_start|>assistant\\n`.

A prompt should end inside a line or after the whole indent of the next one: the tokenizer makes one token of a line end
and the indent behind it, so a bare line end says to the model that the next line stands at the margin.

## Samples

Temperature 0.8, first draw, seed 0; the bar is where the prompt ends.

$samples

## Train it again

```
python -m examples.demo_model.train
```

Run from the root of the repository, with the extras `daemon` and `dev` and a C++ compiler. All 2600 steps take about 45
minutes on two free cores. On busy ones the schedule is cut to end after 75 minutes of wall time; the figures above say how
many steps these weights had. It keeps checkpoints in
`.demo/train/` and goes on from the last one when started again; delete that folder to start afresh. `--export-only`
writes these files from the last checkpoint. Another Python version has other files and gives other figures.
""")


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and what the model wrote after it."""

    prompt: str
    output: str


def write_card(path: Path, metrics: Metrics, shape: ModelShape, stride: int, samples: list[Sample]) -> None:
    """Writes the card with the figures of `metrics`."""
    rows = [f"| {name} | {value} |" for name, value in dataclasses.asdict(shape).items()]
    text = CARD.substitute(
        parameters=f"{metrics.num_parameters / 1e6:.2f} million",
        early="" if metrics.is_final else " **Early version: the weights are from a checkpoint of a run that still goes on.**",
        bpb=f"{metrics.held_out_bits_per_byte:.3f}",
        bpb_library=f"{metrics.held_out_library_bits_per_byte:.3f}",
        bpb_tests=f"{metrics.held_out_tests_bits_per_byte:.3f}",
        bpb_median=f"{metrics.held_out_median_bits_per_byte:.3f}",
        bpb_xz=f"{metrics.held_out_xz_bits_per_byte:.3f}",
        steps=metrics.num_steps,
        tokens_seen=f"{metrics.num_tokens_seen / 1e6:.1f} million",
        minutes=f"{metrics.train_minutes:.0f}",
        context=shape.max_position_embeddings,
        stride=stride,
        python=metrics.python_version,
        train_files=metrics.num_train_files,
        train_megabytes=f"{metrics.num_train_bytes / 1e6:.1f}",
        train_tokens=f"{metrics.num_train_tokens / 1e6:.1f} million",
        held_files=metrics.num_held_out_files,
        held_kilobytes=metrics.num_held_out_bytes // 1000,
        shape="\n".join(["| | |", "| --- | --- |", *rows]),
        vocab_size=shape.vocab_size,
        samples="\n\n".join(_fenced(sample) for sample in samples),
    )
    path.write_text(text, "utf-8")


def _fenced(sample: Sample) -> str:
    """Returns prompt and output as code; the bar marks where the model takes over."""
    return f"````\n{sample.prompt}▌{sample.output}\n````"
