"""Shortages: what a plan of pages fails for when those who are seated do not fit together."""

from __future__ import annotations

from kerneld.rows import Row
from kerneld.tally import ancestors
from memory.errors import OutOfFrames, OverLimit

Shortage = OutOfFrames | OverLimit | None  # None: of frames, and known without asking the pager


def concerns(shortage: Shortage, row: Row) -> bool:
    """Whether a row's leaving could end a shortage: any row's that of frames, only the capped owner's that of its limit."""
    return not isinstance(shortage, OverLimit) or shortage.owner in ancestors(row.request.tenant)


def cause_of(shortage: Shortage) -> str:
    """Why somebody is preempted for it, in a word."""
    return "limit" if isinstance(shortage, OverLimit) else "frames"
