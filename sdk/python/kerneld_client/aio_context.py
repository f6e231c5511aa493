"""A handle to one context, for asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Unpack

from kerneld_client import calls, values
from kerneld_client.aio_wire import AioWire, Stream
from kerneld_client.cursor import Cursor
from kerneld_client.errors import NotFound
from kerneld_client.options import ForkOptions, InferOptions, SetOptions


class Context:
    """A handle to one context. As a context manager it frees the context at the end."""

    def __init__(self, wire: AioWire, context_id: str, restored: values.Restored | None = None) -> None:
        self._wire = wire
        self.id = context_id
        self.restored = restored  # what `Client.restore` found; None for other contexts

    def __repr__(self) -> str:
        return f"Context({self.id!r})"

    async def __aenter__(self) -> Context:
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(NotFound):  # it may have been freed inside
            await self.free()

    def infer(self, text: str | None = None, **options: Unpack[InferOptions]) -> Stream:
        """Append text, tokens or messages, and generate; without input, continue. The request begins at once."""
        return self._stream(Cursor(self.id, calls.infer(self.id, text, options)))

    def attach(self, offset: int) -> Stream:
        """Read on from the position of the next token wanted."""
        return self._stream(Cursor(self.id, calls.attach(self.id, offset), offset))

    def _stream(self, cursor: Cursor) -> Stream:
        return Stream(self._wire, cursor, self.cancel)

    async def cancel(self) -> bool:
        """End the request in flight; says whether there was one."""
        return await self._wire.invoke(calls.cancel(self.id))

    async def score(self, text: str | None = None, *, tokens: Sequence[int] | None = None, top: int = 0) -> values.Score:
        """Log-probabilities of a continuation; the context is left as it was."""
        return await self._wire.invoke(calls.score(self.id, text, tokens, top))

    async def fork(self, **options: Unpack[ForkOptions]) -> Context:
        """Make a context that shares this one's past."""
        return Context(self._wire, (await self._wire.invoke(calls.fork(self.id, options))).id)

    async def checkpoint(self, *, name: str = "", tokens_only: bool = False) -> values.Image:
        """Write an image of the context."""
        return await self._wire.invoke(calls.checkpoint(self.id, name, tokens_only))

    async def stat(self) -> values.ContextInfo:
        """Show the context."""
        return await self._wire.invoke(calls.stat(self.id))

    async def read(self, offset: int = 0, limit: int = 0) -> values.ContextText:
        """Tokens and text from an offset; a limit of 0 is the daemon's (4096 tokens)."""
        return await self._wire.invoke(calls.read(self.id, offset, limit))

    async def truncate(self, num_tokens: int) -> values.ContextInfo:
        """Roll back to the first `num_tokens`."""
        return await self._wire.invoke(calls.truncate(self.id, num_tokens))

    async def suspend(self, *, to_disk: bool = False) -> values.ContextInfo:
        """Make its pages the first to be reclaimed; `to_disk` moves all of them to the disk tier before it returns."""
        return await self._wire.invoke(calls.suspend(self.id, to_disk))

    async def resume(self) -> values.ContextInfo:
        """Undo a suspend."""
        return await self._wire.invoke(calls.resume(self.id))

    async def set(self, **options: Unpack[SetOptions]) -> values.ContextInfo:
        """Change nice, priority, labels or limit."""
        return await self._wire.invoke(calls.set_context(self.id, options))

    async def grant(self, grantee: str, access: Sequence[str], *, expires_at: float = 0.0) -> values.ContextInfo:
        """Give "principal:NAME" or "tenant:PATH" access: "read", "write", "fork"."""
        return await self._wire.invoke(calls.grant(self.id, grantee, access, expires_at))

    async def revoke(self, grantee: str) -> values.ContextInfo:
        """Take access back."""
        return await self._wire.invoke(calls.revoke(self.id, grantee))

    async def free(self) -> None:
        """Give the context back."""
        await self._wire.invoke(calls.free(self.id))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("A context handle belongs to its connection and cannot be pickled; pass its id instead.")
