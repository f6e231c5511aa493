"""The tokenizer of a model: text to token ids and back. Safe to use from several threads; encoding long text belongs off the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import tokenizers

from drivers.errors import ModelCorrupt, ModelUnsupported
from drivers.gguf import find_gguf
from kerneld.errors import InvalidArgument
from kerneld.gguftokenizer import tokenizer_of

FILE_NAME = "tokenizer.json"


class _Refusal:
    """Turns the bare `Exception` that the tokenizers library raises for a file it cannot use into an error with a name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        if kind is Exception:
            raise InvalidArgument("path", f"{self._path} is not a tokenizer that can be used here: {error}.") from error


class Tokenizer:
    """Encodes and decodes as the file `tokenizer.json` of a model says."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_truncation()  # a file may ask for it, and would then shorten prompts without a word
        inner.no_padding()
        self._inner = inner
        self._opening = _opening(inner)
        self.special_tokens = frozenset(
            token_id for token_id, token in inner.get_added_tokens_decoder().items() if token.special
        )  # those that have no text

    @classmethod
    def load(cls, directory: Path) -> Tokenizer | None:
        """The tokenizer in a model's directory, or of a GGUF file without one beside it; None if the model has none.

        Raises: InvalidArgument, if the file cannot be used.
        """
        path = (directory.parent if directory.is_file() else directory) / FILE_NAME
        if path.is_file():
            with _Refusal(path):
                return cls(tokenizers.Tokenizer.from_file(str(path)))
        try:
            file = find_gguf(directory)
            with _Refusal(file or directory):
                inner = tokenizer_of(file) if file is not None else None
        except (ModelCorrupt, ModelUnsupported) as error:
            raise InvalidArgument("path", str(error)) from error
        return None if inner is None else cls(inner)

    @property
    def vocab_size(self) -> int:
        """How many tokens it knows; the model may have room for more."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; with special tokens, those that open a sequence (bos) come before. None is ever put at its end."""
        tokens: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return [*self._opening, *tokens] if add_special_tokens else tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids. Special tokens and ids that it does not know have none; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._inner.decode(tokens, skip_special_tokens=True)
        return text

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text, such as "<|im_end|>"; None if there is no such token."""
        token_id: int | None = self._inner.token_to_id(token)
        return token_id


def _opening(inner: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The special tokens that the tokenizer's post-processor puts before a text."""
    plain = inner.encode("a", add_special_tokens=False).ids
    full = inner.encode("a", add_special_tokens=True).ids
    starts = (i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain)
    return tuple(full[: next(starts, 0)])
