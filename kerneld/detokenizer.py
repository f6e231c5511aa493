"""Incremental detokenization: the text that each new token completes, never half a character.

A token may hold a part of a character (byte-level BPE, byte fallback), and what a token's text is may depend on the one before it (leading
spaces). So a few tokens are decoded together, and what was told before is cut off:

    tokens   ... | p0 p1 | q0 q1 q2          prefix: told already, decoded again for context; pending: not told yet
    text          "prefix" "piece"           the piece is told when the text ends in whole characters

A character has at most four bytes and a token at least one, so of many pending tokens only the last three can belong to a character
that is still unfinished: the work per token is bounded, whatever comes.

Promise: if the first prefix is empty, all pieces together, `flush` included, are what `Tokenizer.decode` makes of all tokens together.
Exceptions: if more than `MAX_SILENT` special tokens stand inside an unfinished character, that character is given up as U+FFFD; and where
byte fallback decodes a run of bytes that is not UTF-8 to nothing but U+FFFD, the whole characters in it that were told already stay.
With a first prefix P, they are what the decoded whole has after the text of P; if P ends inside a character, U+FFFD stands for it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kerneld.tokenizer import Tokenizer

REPLACEMENT: Final = "\ufffd"
MAX_PENDING: Final = 8
MAX_SILENT: Final = 16
_UNFINISHED: Final = 3  # tokens at most that a character still to be finished has


class Detokenizer:
    """Turns tokens into text as they come."""

    __slots__ = ("_num_silent", "_pending", "_prefix", "_prefix_text", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, prefix: Sequence[int] = ()) -> None:
        """`prefix`: the last tokens before the first one to be pushed; only a few of them are looked at."""
        self._tokenizer = tokenizer
        self._prefix: list[int] = [token for token in prefix[-MAX_PENDING:] if token not in tokenizer.special_tokens]
        self._prefix_text = tokenizer.decode(self._prefix)
        self._pending: list[int] = []
        self._num_silent = 0  # special tokens that came while others were pending

    def copy(self) -> Detokenizer:
        """Another one that has seen the same tokens."""
        twin = Detokenizer(self._tokenizer)
        twin._prefix, twin._prefix_text = list(self._prefix), self._prefix_text
        twin._pending, twin._num_silent = list(self._pending), self._num_silent
        return twin

    @property
    def num_pending(self) -> int:
        """How many of the last tokens have text that is not told yet."""
        return len(self._pending) + self._num_silent if self._pending else 0

    def push(self, token: int) -> str:
        """The text that this token completes; empty while it ends inside a character."""
        if token in self._tokenizer.special_tokens:
            return self._push_silent()
        self._pending.append(token)
        text = self._tokenizer.decode(self._prefix + self._pending)
        if not text.endswith(REPLACEMENT):
            return self._tell(len(self._pending), text)
        if len(self._pending) < MAX_PENDING:
            return ""
        num_told = len(self._pending) - _UNFINISHED
        return self._tell(num_told, self._tokenizer.decode(self._prefix + self._pending[:num_told]))

    def flush(self) -> str:
        """What is left at the end; an unfinished character becomes U+FFFD."""
        return self._tell(len(self._pending), self._tokenizer.decode(self._prefix + self._pending)) if self._pending else ""

    def _push_silent(self) -> str:
        if not self._pending:
            return ""
        self._num_silent += 1
        return self.flush() if self._num_silent > MAX_SILENT else ""

    def _tell(self, num_tokens: int, text: str) -> str:
        """Tell the first pending tokens, whose text with the prefix is `text`, and make them the next prefix."""
        told = self._pending[:num_tokens]
        piece = self._after_prefix(text, told)
        # A prefix without text would leave the next token as the first one of the decoded whole, where some decoders cut a space.
        self._prefix = told if piece else (self._prefix + told)[-MAX_PENDING:]
        self._prefix_text = self._tokenizer.decode(self._prefix)
        self._pending = self._pending[num_tokens:]
        self._num_silent = 0
        return piece

    def _after_prefix(self, text: str, told: list[int]) -> str:
        if text.startswith(self._prefix_text) or self._prefix_text.endswith(REPLACEMENT):
            return text[len(self._prefix_text) :]
        return self._tokenizer.decode(told)  # byte fallback took back what was a whole character
