"""The training tokens as one long array, and the batch that belongs to each step."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.demo_model.chat import BOS, EOS, render
from examples.demo_model.corpus import Document, chats_of
from examples.demo_model.tokenizer import token_id

Tokens = npt.NDArray[np.uint16]

ROW_TOKENS = 1024
"""Rows are cut this long; a phase with a shorter context cuts each row again."""


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizedText:
    """All training text in tokens, and the size of the text they came from."""

    tokens: Tokens
    size_bytes: int


def tokenize_documents(documents: list[Document], tokenizer: Tokenizer) -> TokenizedText:
    """Returns all documents and their chats as one run of tokens, each as `BOS text EOS`."""
    texts = [document.text for document in documents]
    texts += [render(turns) for document in documents for turns in chats_of(document)]
    bos, eos = token_id(tokenizer, BOS), token_id(tokenizer, EOS)
    # A fixed shuffle: chats lie between the files, and the files of one package lie apart.
    order = np.random.default_rng(0).permutation(len(texts))
    encodings = tokenizer.encode_batch([texts[i] for i in order], add_special_tokens=False)
    tokens = np.concatenate([np.array([bos, *encoding.ids, eos], dtype=np.uint16) for encoding in encodings])
    return TokenizedText(tokens, sum(len(text.encode()) for text in texts))


@dataclasses.dataclass(frozen=True, slots=True)
class TokenStream:
    """Gives each step its rows; what a step reads depends on its number only, so a resumed run repeats nothing."""

    text: TokenizedText
    rows_per_step: int
    seed: int = 0

    @property
    def rows_per_epoch(self) -> int:
        """Rows in one pass; the last row of the array is given up so that each pass may start at its own offset."""
        return (len(self.text.tokens) - 1) // ROW_TOKENS - 1

    @property
    def bytes_per_token(self) -> float:
        """Mean over the stream; turns a training loss per token into bits per byte."""
        return self.text.size_bytes / len(self.text.tokens)

    def batch(self, step: int, context: int) -> tuple[Tensor, Tensor]:
        """Returns inputs and targets of `step`, each `[rows * (ROW_TOKENS / context), context] int64`."""
        first = step * self.rows_per_step
        rows = np.stack([self._row(row) for row in range(first, first + self.rows_per_step)]).astype(np.int64)
        tensor = torch.from_numpy(rows)
        return tensor[:, :-1].reshape(-1, context), tensor[:, 1:].reshape(-1, context)

    def _row(self, row: int) -> Tokens:
        """Returns row number `row` of the endless sequence of shuffled passes, with one token more for the targets."""
        epoch, position = divmod(row, self.rows_per_epoch)
        rng = np.random.default_rng((self.seed, epoch))
        start = int(rng.integers(ROW_TOKENS)) + int(rng.permutation(self.rows_per_epoch)[position]) * ROW_TOKENS
        return self.text.tokens[start : start + ROW_TOKENS + 1]
