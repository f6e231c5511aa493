"""Trains the demo model on the Python standard library and writes it into this folder.

`python -m examples.demo_model.train` from the root of the repository; see the model card (README.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from examples.demo_model.card import Sample, write_card
from examples.demo_model.chat import IM_START, ChatTurn, render
from examples.demo_model.corpus import Document, library_root, read_documents
from examples.demo_model.evaluation import bits_per_byte, xz_bits_per_byte
from examples.demo_model.export import write_config, write_loss_curve, write_tokenizer, write_weights
from examples.demo_model.generation import continue_text
from examples.demo_model.metrics import Metrics, write_metrics
from examples.demo_model.model import Llama, ModelShape
from examples.demo_model.schedule import Budget
from examples.demo_model.stream import ROW_TOKENS, TokenStream, tokenize_documents
from examples.demo_model.tokenizer import train_tokenizer
from examples.demo_model.trainer import Trainer, TrainerConfig

FOLDER = Path(__file__).parent
WORK_FOLDER = FOLDER.parents[1] / ".demo" / "train"
ROWS_PER_STEP = 8
STRIDE = 512
SAMPLE_PROMPTS = (
    "def read_lines(path",
    '"""Utilities for parsing HTTP headers.\n\nThis module',
    "class TestQueue(unittest.TestCase):\n    def test_put",
    render([ChatTurn("user", "Write the function `get_size`: Return the size of a file in bytes.")]) + f"{IM_START}assistant\n",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Corpus:
    """The two sides of the split."""

    train: list[Document]
    held_out: list[Document]

    def held_out_part(self, is_test: bool) -> list[Document]:
        """Returns the held-out files of the test suites, or those outside them."""
        return [document for document in self.held_out if document.is_test == is_test]


def read_corpus() -> Corpus:
    """Returns the standard library of the running Python, split."""
    documents = read_documents(library_root())
    return Corpus([d for d in documents if not d.is_held_out], [d for d in documents if d.is_held_out])


def open_tokenizer(corpus: Corpus, path: Path) -> Tokenizer:
    """Returns the tokenizer of this work folder; it is trained once, because the weights depend on its ids."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train_tokenizer(document.text for document in corpus.train).save(str(path))
    return Tokenizer.from_file(str(path))


def open_trainer(options: argparse.Namespace, corpus: Corpus, tokenizer: Tokenizer) -> Trainer:
    """Returns a trainer that stands where the last checkpoint of the work folder stands."""
    torch.manual_seed(0)
    stream = TokenStream(tokenize_documents(corpus.train, tokenizer), ROWS_PER_STEP)
    config = TrainerConfig(Budget(options.max_steps, options.max_minutes * 60.0), options.work_folder / "checkpoint.pt")
    quick_documents = corpus.held_out[::3]  # the full measure takes a minute; this one is for the curve

    def evaluate(model: Llama) -> float:
        return bits_per_byte(model, tokenizer, quick_documents, stride=ROW_TOKENS)

    trainer = Trainer(Llama(ModelShape(), torch.bfloat16), stream, config, evaluate)
    trainer.resume()
    return trainer


def show_run(trainer: Trainer) -> None:
    """Runs the trainer to its end behind a progress bar; points of the curve are printed above it."""
    columns = (TextColumn("step {task.fields[step]}"), BarColumn(), TextColumn("{task.percentage:.1f}%"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("train", total=1.0, step=trainer.step)
        for point in trainer.run():
            progress.update(task, completed=trainer.progress, step=point.step)
            if point.held_out_bits_per_byte is not None:
                train, held_out = point.train_bits_per_byte, point.held_out_bits_per_byte
                minutes = trainer.elapsed_s / 60
                progress.print(f"{minutes:5.1f} min, step {point.step}: {train:.3f} bits per byte, held out {held_out:.3f}")


def measure(trainer: Trainer, corpus: Corpus, tokenizer: Tokenizer) -> Metrics:
    """Returns the figures of the trainer's model as it stands."""

    def held_out(documents: list[Document]) -> float:
        return round(bits_per_byte(trainer.model, tokenizer, documents, STRIDE), 4)

    per_file = [held_out([document]) for document in corpus.held_out]

    return Metrics(
        is_final=trainer.progress >= 1.0,
        num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        num_steps=trainer.step,
        num_tokens_seen=trainer.step * ROWS_PER_STEP * ROW_TOKENS,
        train_minutes=round(trainer.elapsed_s / 60, 1),
        python_version=platform.python_version(),
        num_train_files=len(corpus.train),
        num_train_bytes=sum(document.size_bytes for document in corpus.train),
        num_train_tokens=len(trainer.stream.text.tokens),
        num_held_out_files=len(corpus.held_out),
        num_held_out_bytes=sum(document.size_bytes for document in corpus.held_out),
        held_out_bits_per_byte=held_out(corpus.held_out),
        held_out_library_bits_per_byte=held_out(corpus.held_out_part(is_test=False)),
        held_out_tests_bits_per_byte=held_out(corpus.held_out_part(is_test=True)),
        held_out_median_bits_per_byte=round(statistics.median(per_file), 4),
        held_out_xz_bits_per_byte=round(xz_bits_per_byte(corpus.held_out), 4),
    )


def export(trainer: Trainer, corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> Metrics:
    """Writes every file of the model into `folder` and returns its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    model = trainer.model
    with torch.no_grad():
        for parameter in model.parameters():
            # What is measured must be what is stored. The trainer is not stepped again after this.
            parameter.copy_(parameter.to(torch.bfloat16))
    write_weights(model, folder / "model.safetensors")
    write_config(model.shape, tokenizer, folder)
    write_tokenizer(tokenizer, model.shape.max_position_embeddings, folder)
    write_loss_curve(trainer.curve, folder / "loss.png")
    metrics = measure(trainer, corpus, tokenizer)
    write_metrics(metrics, folder / "metrics.json")
    samples = [Sample(prompt, continue_text(model, tokenizer, prompt, max_new_tokens=160)) for prompt in SAMPLE_PROMPTS]
    write_card(folder / "README.md", metrics, model.shape, STRIDE, samples)
    return metrics


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the command-line options."""
    parser = argparse.ArgumentParser(description="Train the demo model on the Python standard library.")
    parser.add_argument("--max-steps", type=int, default=2600, help="steps to take; 2600 take about 45 minutes on 2 free cores")
    parser.add_argument("--max-minutes", type=float, default=75.0, help="the schedule ends after this time at the latest")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--work-folder", type=Path, default=WORK_FOLDER, help="where checkpoints are kept")
    parser.add_argument("--output-folder", type=Path, default=FOLDER, help="where the model files are written")
    parser.add_argument("--export-only", action="store_true", help="write the model files from the last checkpoint")
    return parser.parse_args(arguments)


def main() -> None:
    """Trains to the end of the budget and exports."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    corpus = read_corpus()
    tokenizer = open_tokenizer(corpus, options.work_folder / "tokenizer.json")
    trainer = open_trainer(options, corpus, tokenizer)
    if not options.export_only:
        show_run(trainer)
    metrics = export(trainer, corpus, tokenizer, options.output_folder)
    print(f"{metrics.held_out_bits_per_byte:.3f} bits per byte on held-out files after {metrics.num_steps} steps")


if __name__ == "__main__":
    main()
