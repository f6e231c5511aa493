"""The shape of a quantum: which rows compute how many tokens in its first step, and how many steps it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kerneld.request import Request


class RowNeed(NamedTuple):
    """A row that could take part in the next quantum."""

    request: Request
    num_pending: int  # tokens that it has to compute, those included that steps on their way will sample; a decoding row has 1
    max_steps: int  # tokens that it may still sample, and for which it has or can get frames; at least 1
    position: int = 0  # of the first of them: the tokens that it has to look back at


class RowShare(NamedTuple):
    """A row of the next quantum, and how many of its pending tokens its first step computes."""

    request: Request
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """The next quantum. Rows that are not named rest."""

    shares: tuple[RowShare, ...]
    num_steps: int

    @property
    def num_tokens(self) -> int:
        """What the first step computes, all rows together."""
        return sum(share.num_tokens for share in self.shares)


def reading_order(rows: Sequence[RowNeed]) -> Sequence[RowNeed]:
    """The rows in the order in which they are given input: better classes first, then tenants that have less to read, then as they came."""
    readers = [row for row in rows if row.num_pending > 1]
    if len(readers) < 2:
        return rows
    pending: Counter[str] = Counter()
    for row in readers:
        pending[row.request.tenant] += row.num_pending
    return sorted(rows, key=lambda row: (row.request.rank, pending[row.request.tenant]))


def share_budget(rows: Sequence[RowNeed], budget: int) -> tuple[RowShare, ...]:
    """Divide a step's token budget: one token for each decoding row first, the rest to prefills in order, each as much as it can use."""
    if len(rows) <= budget and all(row.num_pending == 1 for row in rows):  # most steps
        return tuple([RowShare(row.request, 1) for row in rows])
    left = budget - min(budget, sum(row.num_pending == 1 for row in rows))  # for prefills
    decoding = budget - left
    shares = []
    for row in rows:
        if row.num_pending == 1:
            num_tokens = 1 if decoding > 0 else 0
            decoding -= num_tokens
        else:
            num_tokens = min(row.num_pending, left)
            left -= num_tokens
        if num_tokens:
            shares.append(RowShare(row.request, num_tokens))
    return tuple(shares)


def longest_quantum(rows: Sequence[RowNeed], shares: Sequence[RowShare]) -> int:
    """The most steps that suit every row: 1 while a prefill is unfinished, and no more than any row may still sample."""
    if sum(share.num_tokens for share in shares) < sum(row.num_pending for row in rows):
        return 1
    return min((row.max_steps for row in rows), default=1)
