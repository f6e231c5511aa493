"""The transcript of a request: from sampled tokens to what its readers see.

    token -> Detokenizer -> piece -> StopMatcher -> OutputLog
                               held here while the piece, or a part of it, may yet change:
                               inside a character, or at what may be the beginning of a stop string

A token is shown when all of its text is settled, so the text at an offset never changes, whoever reads it when. What is shown depends on
the tokens and the stops alone: after a restart the same tokens make the same log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from drivers.contract import TokenLogprob
from kerneld.detokenizer import Detokenizer
from kerneld.stopping import StopMatcher
from kerneld.stream import OutputLog
from kerneld.tokenizer import Tokenizer


class _Held(NamedTuple):
    """A token that is not shown yet."""

    token: int
    piece: str
    logprob: TokenLogprob | None


class Transcript:
    """Writes the output log of one request."""

    __slots__ = ("_detokenizer", "_held", "_log", "_matcher", "_num_shown")

    def __init__(self, log: OutputLog, tokenizer: Tokenizer | None, stops: Sequence[str] = (), prefix: Sequence[int] = ()) -> None:
        """`prefix`: the context's last tokens before the output. Without a tokenizer the output has no text."""
        self._log = log
        self._detokenizer = Detokenizer(tokenizer, prefix) if tokenizer else None
        self._matcher = StopMatcher(stops)
        self._held: deque[_Held] = deque()
        self._num_shown = 0  # characters in the log

    def push(self, token: int, logprob: TokenLogprob | None = None) -> bool:
        """Take the next token, which is durable; whether it completes a stop string. After one that does, only `close` may follow."""
        piece = self._detokenizer.push(token) if self._detokenizer else ""
        self._held.append(_Held(token, piece, logprob))
        is_stopped = self._matcher.push(piece)
        self._show(self._num_complete())
        return is_stopped

    def num_kept(self, tokens: Sequence[int]) -> int:
        """How many of the next tokens the output would have: all, or those up to the one that completes a stop string. Changes nothing."""
        if self._detokenizer is None or not self._matcher.has_stops:
            return len(tokens)
        detokenizer, matcher = self._detokenizer.copy(), self._matcher.copy()
        for idx, token in enumerate(tokens):
            if matcher.push(detokenizer.push(token)):
                return idx + 1
        return len(tokens)

    def push_end(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Take a token that ends the output (end of sequence, or a stop token): it is kept, and has no text."""
        self._held.append(_Held(token, "", logprob))

    def close(self) -> None:
        """Show what was held back; called before the log is finished. Text from a stop string on is cut."""
        tail = self._detokenizer.flush() if self._detokenizer and not self._matcher.is_stopped else ""
        if tail:
            self._add_tail(tail)
        kept = self._matcher.stop_at
        for held in self._held:
            room = len(held.piece) if kept is None else max(kept - self._num_shown, 0)
            self._append(held._replace(piece=held.piece[:room]))
        self._held.clear()

    def _add_tail(self, tail: str) -> None:
        last = self._held.pop()
        self._held.append(last._replace(piece=last.piece + tail))
        self._matcher.push(tail)

    def _num_complete(self) -> int:
        """How many held tokens have text that is whole."""
        return len(self._held) - (self._detokenizer.num_pending if self._detokenizer else 0)

    def _show(self, num_complete: int) -> None:
        settled = self._matcher.num_settled
        for _ in range(num_complete):
            if self._num_shown + len(self._held[0].piece) > settled:
                return
            self._append(self._held.popleft())

    def _append(self, held: _Held) -> None:
        self._log.append(held.token, held.piece, held.logprob)
        self._num_shown += len(held.piece)
