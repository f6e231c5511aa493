"""The demo model's files agree with one another, and its training goes on where it was cut off."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from examples.demo_model.chat import SPECIAL_TOKENS, ChatTurn, render
from examples.demo_model.checkpoint import load_checkpoint
from examples.demo_model.corpus import Document, chats_of
from examples.demo_model.evaluation import IGNORED, windows_of
from examples.demo_model.metrics import read_metrics
from examples.demo_model.model import Llama, ModelShape
from examples.demo_model.optimizer import rate_factor
from examples.demo_model.schedule import Budget, context_at, next_progress
from examples.demo_model.stream import ROW_TOKENS, TokenizedText, TokenStream
from examples.demo_model.trainer import Trainer, TrainerConfig

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "demo_model"
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "loss.png",
    "metrics.json",
    "model.safetensors",
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
)
TINY = ModelShape(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
TRANSFORMERS_LOGITS = """
import sys, torch, safetensors.torch, transformers
folder, exchange = sys.argv[1:]
token_ids = safetensors.torch.load_file(exchange + "/input.safetensors")["token_ids"]
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
with torch.no_grad():
    safetensors.torch.save_file({"logits": model(token_ids).logits}, exchange + "/output.safetensors")
"""


def read_json(name: str) -> dict[str, Any]:
    """Returns one of the model's JSON files."""
    content: dict[str, Any] = json.loads((FOLDER / name).read_text("utf-8"))
    return content


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "model.safetensors")


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    config = read_json("config.json")
    return ModelShape(**{field.name: config[field.name] for field in dataclasses.fields(ModelShape)})


def tiny_trainer(folder: Path, max_steps: int) -> Trainer:
    """A run over a few thousand random tokens."""
    tokens = np.random.default_rng(1).integers(0, TINY.vocab_size, 4 * ROW_TOKENS).astype(np.uint16)
    stream = TokenStream(TokenizedText(tokens, size_bytes=3 * len(tokens)), rows_per_step=1)
    config = TrainerConfig(
        Budget(max_steps, max_wall_s=600.0), folder / "checkpoint.pt", is_compiled=False, curve_every_steps=1, evaluate_every_steps=2
    )
    torch.manual_seed(0)
    return Trainer(Llama(TINY), stream, config, evaluate=lambda model: 1.5)


@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_text_begins_with_bos_when_special_tokens_are_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("import os").ids[0] == read_json("config.json")["bos_token_id"]


def test_special_tokens_have_the_ids_the_configs_name(tokenizer: Tokenizer) -> None:
    bos, eos, im_start, im_end = (tokenizer.token_to_id(token) for token in SPECIAL_TOKENS)
    assert (bos, eos, im_start, im_end) == (0, 1, 2, 3)
    assert (read_json("config.json")["bos_token_id"], read_json("config.json")["eos_token_id"]) == (bos, eos)
    assert read_json("generation_config.json")["eos_token_id"] == [eos, im_end]


def test_chat_template_writes_what_training_read() -> None:
    jinja2 = pytest.importorskip("jinja2")
    config = read_json("tokenizer_config.json")
    turns = [ChatTurn("user", "Write the function `f`."), ChatTurn("assistant", "def f(): pass")]
    rendered = jinja2.Template(config["chat_template"]).render(
        messages=[dataclasses.asdict(turn) for turn in turns], bos_token=config["bos_token"], add_generation_prompt=False
    )
    assert rendered == config["bos_token"] + render(turns)


def test_weights_have_the_shapes_of_the_config(weights: dict[str, torch.Tensor], shape: ModelShape) -> None:
    expected = {name: tensor.shape for name, tensor in Llama(shape).state_dict().items()}
    assert {name: tensor.shape for name, tensor in weights.items()} == expected
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_parameter_count_is_the_one_of_the_metrics(weights: dict[str, torch.Tensor]) -> None:
    count = sum(tensor.numel() for tensor in weights.values())
    assert count == read_metrics(FOLDER / "metrics.json").num_parameters
    assert 5_000_000 <= count <= 7_500_000


def test_vocabulary_fits_the_embedding(tokenizer: Tokenizer, weights: dict[str, torch.Tensor]) -> None:
    assert tokenizer.get_vocab_size() == weights["model.embed_tokens.weight"].shape[0]


def test_model_files_are_at_most_16_megabytes() -> None:
    assert sum((FOLDER / name).stat().st_size for name in MODEL_FILES) <= 16_000_000


def test_card_states_the_figures_of_the_metrics() -> None:
    card, metrics = (FOLDER / "README.md").read_text("utf-8"), read_metrics(FOLDER / "metrics.json")
    assert f"| held-out bits per byte | **{metrics.held_out_bits_per_byte:.3f}** |" in card
    assert f"| {metrics.num_steps} / " in card
    assert ("Early version" in card) == (not metrics.is_final)


def test_weights_predict_python(tokenizer: Tokenizer, weights: dict[str, torch.Tensor], shape: ModelShape) -> None:
    model = Llama(shape)
    model.load_state_dict(weights)
    ids = tokenizer.encode('    def __repr__(self):\n        return f"<{self.__class__.__name__}>"\n').ids
    tokens = torch.tensor([ids])
    with torch.no_grad():
        nats_per_token = model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    assert nats_per_token < 4.0  # a uniform guess costs 8.3


def test_logits_are_those_of_transformers(tmp_path: Path, weights: dict[str, torch.Tensor], shape: ModelShape) -> None:
    pytest.importorskip("transformers")
    token_ids = torch.arange(0, shape.vocab_size, 41)[None]
    model = Llama(shape)
    model.load_state_dict(weights)

    # In a process of its own: what transformers warns of on import would be an error here.
    save_file({"token_ids": token_ids}, tmp_path / "input.safetensors")
    subprocess.run([sys.executable, "-c", TRANSFORMERS_LOGITS, str(FOLDER), str(tmp_path)], capture_output=True, check=True)
    theirs = load_file(tmp_path / "output.safetensors")["logits"]

    with torch.no_grad():
        torch.testing.assert_close(model(token_ids), theirs, rtol=0, atol=1e-4)


def test_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    first = tiny_trainer(tmp_path, max_steps=2)
    assert [point.step for point in first.run()] == [1, 2]

    second = tiny_trainer(tmp_path, max_steps=4)
    assert second.resume()
    second.progress = 0.5  # two of now four steps; the checkpoint says that the shorter run was done
    assert [point.step for point in second.run()] == [3, 4]
    assert [point.step for point in second.curve] == [1, 2, 3, 4]


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = tiny_trainer(tmp_path / "unbroken", max_steps=4)
    list(unbroken.run())

    broken = tiny_trainer(tmp_path / "broken", max_steps=4)
    points = broken.run()
    next(points)
    next(points)
    broken.save()
    resumed = tiny_trainer(tmp_path / "broken", max_steps=4)
    resumed.resume()
    list(resumed.run())

    assert resumed.step == 4
    for name, tensor in unbroken.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_no_checkpoint_means_a_fresh_run(tmp_path: Path) -> None:
    assert not tiny_trainer(tmp_path, max_steps=1).resume()


def test_a_torn_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, max_steps=1)
    list(trainer.run())
    (tmp_path / "checkpoint.tmp").write_bytes(b"torn")
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    assert checkpoint is not None
    assert checkpoint.step == 1


@given(count=st.integers(2, 200), context=st.integers(2, 64), data=st.data())
def test_windows_score_every_token_once(count: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    windows = list(windows_of(list(range(count)), context, stride))
    scored = [target for window in windows for target in window.targets if target != IGNORED]
    assert scored == list(range(1, count))
    assert all(len(window.inputs) == len(window.targets) <= context for window in windows)


@given(row=st.integers(0, 50))
def test_targets_are_the_inputs_one_token_later(row: int) -> None:
    tokens = np.arange(5 * ROW_TOKENS, dtype=np.uint16)
    inputs, targets = TokenStream(TokenizedText(tokens, len(tokens)), rows_per_step=1).batch(row, context=256)
    assert inputs.shape == (4, 256)
    assert torch.equal(targets, inputs + 1)


def test_a_pass_reads_every_row_once() -> None:
    tokens = np.arange(9 * ROW_TOKENS, dtype=np.uint16)
    stream = TokenStream(TokenizedText(tokens, len(tokens)), rows_per_step=1)
    starts = {int(stream.batch(row, ROW_TOKENS)[0][0, 0]) // ROW_TOKENS for row in range(stream.rows_per_epoch)}
    assert starts == set(range(stream.rows_per_epoch))


def test_time_leads_the_schedule_on_a_slow_machine() -> None:
    budget = Budget(max_steps=100, max_wall_s=10.0)
    assert next_progress(budget, progress=0.0, step=10, elapsed_s=5.0) == 0.5
    assert next_progress(budget, progress=0.6, step=10, elapsed_s=5.0) == 0.6
    assert next_progress(budget, progress=0.0, step=10, elapsed_s=99.0) == 1.0


def test_rate_rises_and_falls_to_zero() -> None:
    assert rate_factor(0.01, warm_up=0.01) == 1.0
    assert rate_factor(0.505, warm_up=0.01) == pytest.approx(0.5)
    assert rate_factor(1.0, warm_up=0.01) == 0.0


def test_the_last_phase_trains_at_the_full_context() -> None:
    assert [context_at(progress) for progress in (0.0, 0.7, 0.9, 1.0)] == [256, 512, 1024, 1024]


def test_the_split_goes_by_path_alone() -> None:
    assert Document("chunk.py", "one").is_held_out
    assert Document("chunk.py", "another").is_held_out
    assert not Document("os.py", "one").is_held_out


def test_a_documented_function_becomes_a_chat() -> None:
    source = 'class A:\n    def f(self):\n        """Say\n        hello.\n\n        More.\n        """\n        return 1\n'
    chats = list(chats_of(Document("a.py", source)))
    answer = 'def f(self):\n    """Say\n    hello.\n\n    More.\n    """\n    return 1'
    assert chats == [[ChatTurn("user", "Write the function `f`: Say hello."), ChatTurn("assistant", answer)]]
