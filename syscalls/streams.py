"""Closing the kernel's iterators: the word that a reader has left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Closable(Protocol):
    """An iterator that wants to be told."""

    async def aclose(self) -> None: ...


@asynccontextmanager
async def closing(stream: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close the stream on the way out, whatever ended it."""
    try:
        yield stream
    finally:
        if isinstance(stream, Closable):
            await stream.aclose()
