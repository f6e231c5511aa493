"""Held-out bits per byte."""

from __future__ import annotations

import dataclasses
import lzma
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from examples.demo_model.chat import BOS, EOS
from examples.demo_model.corpus import Document
from examples.demo_model.model import Llama
from examples.demo_model.tokenizer import token_id

IGNORED = -100
BATCH_ROWS = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A piece of one file: the tokens that are read and those of their successors that are scored."""

    inputs: list[int]
    targets: list[int]
    """As long as `inputs`; `IGNORED` where an earlier window has scored the token already."""


def windows_of(token_ids: list[int], context: int, stride: int) -> Iterator[Window]:
    """Yields windows that score every token of `token_ids` but the first exactly once.

    After the first window each scored token has at least `context - stride` tokens before it.
    """
    num_targets = len(token_ids) - 1
    scored = 0
    while scored < num_targets:
        end = min(num_targets, max(context, scored + stride))
        start = max(0, end - context)
        targets = token_ids[start + 1 : end + 1]
        yield Window(token_ids[start:end], [IGNORED] * (scored - start) + targets[scored - start :])
        scored = end


def bits_per_byte(model: Llama, tokenizer: Tokenizer, documents: list[Document], stride: int) -> float:
    """Returns the bits the model needs for `documents`, over their bytes.

    Every file stands alone: it begins after `BOS`, and its `EOS` is paid for too.
    """
    context = model.shape.max_position_embeddings
    bos, eos = token_id(tokenizer, BOS), token_id(tokenizer, EOS)
    windows: list[Window] = []
    for document in documents:
        ids = tokenizer.encode(document.text, add_special_tokens=False).ids
        windows += windows_of([bos, *ids, eos], context, stride)
    windows.sort(key=lambda window: len(window.inputs))  # rows of like length waste little on padding
    batches = [windows[i : i + BATCH_ROWS] for i in range(0, len(windows), BATCH_ROWS)]
    nats = sum(_nats(model, batch) for batch in batches)
    return nats / math.log(2) / sum(document.size_bytes for document in documents)


def xz_bits_per_byte(documents: list[Document]) -> float:
    """Returns what the best general packer makes of `documents`, each packed alone and without a file head."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    packed = sum(len(lzma.compress(document.text.encode(), lzma.FORMAT_RAW, filters=filters)) for document in documents)
    return 8 * packed / sum(document.size_bytes for document in documents)


@torch.no_grad()
def _nats(model: Llama, windows: list[Window]) -> float:
    """Returns the summed cross entropy of the scored tokens of `windows`."""
    width = max(len(window.inputs) for window in windows)
    inputs = _padded([window.inputs for window in windows], width, fill=0)
    targets = _padded([window.targets for window in windows], width, fill=IGNORED)
    logits = model(inputs).flatten(0, 1).float()
    return float(F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum"))


def _padded(rows: list[list[int]], width: int, fill: int) -> Tensor:
    """Returns `rows` as `[rows, width] int64`, filled up on the right (which a causal model does not see)."""
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])
