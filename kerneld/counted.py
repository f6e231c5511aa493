"""Counted: a count and its noun, as messages say it."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 request, 2 requests."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
