"""Writes the folder's model files in Hugging Face format."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from examples.demo_model.chat import BOS, CHAT_TEMPLATE, EOS, IM_END
from examples.demo_model.checkpoint import CurvePoint
from examples.demo_model.model import Llama, ModelShape
from examples.demo_model.tokenizer import token_id


def write_weights(model: Llama, path: Path) -> None:
    """Writes the parameters as bf16 safetensors; the output layer is not among them, being tied to the embedding."""
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors creates it for the owner alone


def write_config(shape: ModelShape, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `config.json` and `generation_config.json`."""
    bos, eos, im_end = (token_id(tokenizer, token) for token in (BOS, EOS, IM_END))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **dataclasses.asdict(shape),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    generation = {
        "bos_token_id": bos,
        "eos_token_id": [eos, im_end],
        "pad_token_id": eos,
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
    }
    _write_json(config, folder / "config.json")
    _write_json(generation, folder / "generation_config.json")


def write_tokenizer(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(config, folder / "tokenizer_config.json")


def write_loss_curve(curve: list[CurvePoint], path: Path) -> None:
    """Draws training and held-out bits per byte over the steps."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([point.step for point in curve], [point.train_bits_per_byte for point in curve], label="training", lw=0.8)
    held_out = [(point.step, point.held_out_bits_per_byte) for point in curve if point.held_out_bits_per_byte is not None]
    axes.plot([step for step, _ in held_out], [bits for _, bits in held_out], "o-", label="held out", ms=3)
    axes.set(xlabel="step", ylabel="bits per byte", ylim=(0.6, 3.0))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80, bbox_inches="tight")
    pyplot.close(figure)


def _write_json(value: Mapping[str, object], path: Path) -> None:
    """Writes `value` for a reader: indented, with a last line end."""
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
