"""The hash chain of a context's pages: a name for the content of each, that of everything before it included.

    key -1 = H(seed)      key i = H(key i-1 || tokens of page i)      H = blake2b, 16 bytes; tokens u32 little endian

The seed holds the tenant's key and the model's fingerprint, so equal keys mean equal KV of the same tenant on the same model, and two
tenants never share one.

Invariants
1. `keys` has one key for each full page; the tokens of the last, partial page are kept until it is full.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable

KEY_BYTES = 16


class HashChain:
    """Names the pages of one context, as its tokens come."""

    __slots__ = ("_root", "_tail", "keys", "page_tokens")

    def __init__(self, seed: bytes, page_tokens: int) -> None:
        self.keys: list[bytes] = []
        self.page_tokens = page_tokens
        self._root = _digest(seed)
        self._tail: array[int] = array("I")

    @property
    def num_tokens(self) -> int:
        """Tokens that the chain has seen."""
        return len(self.keys) * self.page_tokens + len(self._tail)

    def extend(self, tokens: Iterable[int]) -> None:
        """Go on with the next tokens of the context."""
        tail = self._tail
        tail.extend(tokens)
        num_full = len(tail) // self.page_tokens
        for page in range(num_full):
            self.keys.append(self._link(tail[page * self.page_tokens : (page + 1) * self.page_tokens]))
        if num_full:
            self._tail = tail[num_full * self.page_tokens :]

    def partial_key(self) -> bytes:
        """Name of the tokens after the last full page; empty if there are none."""
        return self._link(self._tail) if self._tail else b""

    def truncate(self, num_tokens: int, tokens: Iterable[int]) -> None:
        """Go back to the first `num_tokens` tokens; `tokens` are those of them that lie behind the last full page left.

        Raises: ValueError, if they are not that many, or the chain is shorter; then nothing is changed.
        """
        num_full, num_tail = divmod(num_tokens, self.page_tokens)
        tail = array("I", tokens)
        if num_tokens > self.num_tokens or len(tail) != num_tail:
            raise ValueError(f"{len(tail)} tail tokens do not cut a chain of {self.num_tokens} tokens to {num_tokens}")
        del self.keys[num_full:]
        self._tail = tail

    def fork(self) -> HashChain:
        """A chain that goes its own way from here on."""
        child = HashChain(b"", self.page_tokens)
        child._root = self._root
        child.keys = list(self.keys)
        child._tail = array("I", self._tail)
        return child

    def _link(self, tokens: array[int]) -> bytes:
        words = array("I", tokens)
        if sys.byteorder == "big":
            words.byteswap()
        return _digest((self.keys[-1] if self.keys else self._root) + words.tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES, person=b"kerneld.page").digest()
