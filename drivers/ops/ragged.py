"""The shape of one step: rows of different lengths side by side in one flat batch, and where their keys lie.

Tokens are flat, `[num_tokens, ...]`, row after row, decode rows (one token each) first and shortest first, so that every piece of work
below covers a contiguous range of tokens. Indexes are made once per step and serve all layers of a KV group.

    tokens   | d | d | d | d |  prefill A (5)    |  prefill B (3)  |
             |--- bucket 1 --|--- one span ------|--- one span ----|

A **bucket** is decode rows of similar length: their pages are gathered side by side, padded to the longest, masked, and attended in one
call. A **span** is one row, attended by itself; where its keys are more than the workspace holds they are cut into pieces that merge by
their log-sum-exp. Only pages inside a row's window are ever read, so a table may name anything before it. Padding repeats a page of the
same row: what is masked out must still be finite, and nobody else's memory is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FEW_PAGES = 64  # padding that is cheaper than one more call per layer


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Attention heads. Query heads are group-major: head h reads KV head h % num_kv_heads."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def num_queries_per_kv(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class RowSpan:
    """One row's part of a step: tokens [start, start + count) of the batch, at positions [position, position + count)."""

    start: int
    count: int
    position: int
    frames: np.ndarray  # [pages] int64, the row's page table for one KV group

    def tokens(self) -> Iterator[RowSpan]:
        """Each token as a row of its own."""
        return (RowSpan(self.start + idx, 1, self.position + idx, self.frames) for idx in range(self.count))


@dataclass(frozen=True, slots=True)
class Bucket:
    """Decode rows [start, start + num_rows) of the batch and their gathered pages."""

    start: int
    num_rows: int
    frames: Tensor  # [num_rows * num_pages] int64
    gathered: Tensor  # [num_rows * num_pages, P, 2, J, D], in the workspace
    keys: Tensor  # [num_rows, J, num_keys, D], views of it; padding included
    values: Tensor
    mask: Tensor | None  # [num_rows, 1, 1, num_keys], 0 or -inf


@dataclass(frozen=True, slots=True)
class Piece:
    """Some keys of one span."""

    frames: Tensor  # [num_pages] int64
    gathered: Tensor  # [num_pages, P, 2, J, D], in the workspace
    keys: Tensor  # [J, 1, num_keys, D], views of it: the first keys of those pages
    values: Tensor
    mask: Tensor | None = None  # [count, num_keys], 0 or -inf; None where every query sees every key, or all is plain causal
    blind: Tensor | None = None  # [count] bool: queries that see none of these keys; None where there are none
    is_causal: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """One row attended by itself: queries [start, start + count) over all its pieces."""

    start: int
    count: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What does not change from step to step for one KV group."""

    page_tokens: int
    window: int | None
    workspace: Tensor  # [workspace_tokens, 2, J, D], whole pages: what is gathered at once, at most; shared by all layers

    @property
    def most_pages(self) -> int:
        """Pages that the workspace holds."""
        return self.workspace.shape[0] // self.page_tokens


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """One step's attention for one KV group."""

    shape: AttentionShape
    spans: tuple[RowSpan, ...]  # every row, as the reference reads it
    buckets: tuple[Bucket, ...]
    rest: tuple[Span, ...]
    write_frames: Tensor  # [num_tokens] int64: where each token's key and value go
    write_offsets: Tensor  # [num_tokens] int64, inside the page


def plan_attention(shape: AttentionShape, rows: Sequence[RowSpan]) -> RaggedBatch:
    """Make the indexes of one step. `rows` are in batch order: decode rows first, shortest first."""
    most_pages = shape.most_pages
    buckets: list[Bucket] = []
    rest: list[Span] = []
    decode = [row for row in rows if row.count == 1 and _num_pages(shape, row) <= most_pages]
    while decode:
        first = _bucket_start(shape, decode, most_pages)
        buckets.append(_bucket(shape, decode[first:]))
        del decode[first:]
    rest.extend(_span(shape, row, most_pages) for row in rows if row.count > 1 or _num_pages(shape, row) > most_pages)
    frames, offsets = _write_indexes(shape, rows)
    return RaggedBatch(shape, tuple(rows), tuple(buckets), tuple(rest), frames, offsets)


def plan_alone(shape: AttentionShape, rows: Sequence[RowSpan]) -> RaggedBatch:
    """The same for rows of one token each, every one a call of its own: in a call of several, the bits of one depend on how many there are
    (they lie elsewhere in the memory of the library's threads, and in float32 and float16 that shows)."""
    is_short = [_num_pages(shape, row) <= shape.most_pages for row in rows]
    buckets = tuple(_bucket(shape, [row]) for row, short in zip(rows, is_short, strict=True) if short)
    rest = tuple(_span(shape, row, shape.most_pages) for row, short in zip(rows, is_short, strict=True) if not short)
    return RaggedBatch(shape, tuple(rows), buckets, rest, *_write_indexes(shape, rows))


def first_page(shape: AttentionShape, position: int) -> int:
    """The first page that the token at `position` sees."""
    return 0 if shape.window is None else max(0, position - shape.window + 1) // shape.page_tokens


def _num_pages(shape: AttentionShape, row: RowSpan) -> int:
    return (row.position + row.count - 1) // shape.page_tokens + 1 - first_page(shape, row.position)


def _bucket_start(shape: AttentionShape, rows: list[RowSpan], most_pages: int) -> int:
    """Where the last bucket begins: rows at least half as long as the longest, or so few that padding does not matter."""
    longest = max(_num_pages(shape, row) for row in rows)
    first = len(rows) - 1
    padding = 0
    while first > 0 and (len(rows) - first + 1) * longest <= most_pages:
        pages = _num_pages(shape, rows[first - 1])
        padding += longest - pages
        if pages * 2 < longest and padding > FEW_PAGES:
            break
        first -= 1
    return first


def _bucket(shape: AttentionShape, rows: list[RowSpan]) -> Bucket:
    longest = max(_num_pages(shape, row) for row in rows)
    frames = np.empty((len(rows), longest), dtype=np.int64)
    bounds = np.empty((len(rows), 2), dtype=np.int64)  # visible keys of each row: [low, high) of its gathered ones
    for idx, row in enumerate(rows):
        page, num_pages = first_page(shape, row.position), _num_pages(shape, row)
        frames[idx, :num_pages] = row.frames[page : page + num_pages]
        frames[idx, num_pages:] = frames[idx, 0]
        skipped = page * shape.page_tokens
        low = 0 if shape.window is None else max(0, row.position - shape.window + 1)
        bounds[idx] = low - skipped, row.position + 1 - skipped
    num_keys = int(bounds[:, 1].max())
    mask = None
    if bounds[:, 0].any() or (bounds[:, 1] < num_keys).any():
        keys = np.arange(num_keys)
        hidden = (keys < bounds[:, :1]) | (keys >= bounds[:, 1:])
        mask = _additive(hidden, shape.workspace.dtype).view(len(rows), 1, 1, num_keys)
    gathered = _room(shape, frames.size)
    rowwise = gathered.view(len(rows), -1, *gathered.shape[2:])[:, :num_keys].permute(2, 0, 3, 1, 4)  # [2, rows, J, keys, D]
    return Bucket(rows[0].start, len(rows), torch.from_numpy(frames.reshape(-1)), gathered, rowwise[0], rowwise[1], mask)


def _room(shape: AttentionShape, num_pages: int) -> Tensor:
    """The first pages of the workspace, `[num_pages, P, 2, J, D]`."""
    return shape.workspace[: num_pages * shape.page_tokens].view(num_pages, shape.page_tokens, *shape.workspace.shape[1:])


def _span(shape: AttentionShape, row: RowSpan, most_pages: int) -> Span:
    page, end = first_page(shape, row.position), row.position + row.count
    last = (end - 1) // shape.page_tokens + 1
    pieces = []
    for low in range(page, last, most_pages):
        high = min(last, low + most_pages)
        keys = (low * shape.page_tokens, min(end, high * shape.page_tokens))
        pieces.append(_piece(shape, row, torch.from_numpy(row.frames[low:high].copy()), keys))
    return Span(row.start, row.count, tuple(pieces))


def _piece(shape: AttentionShape, row: RowSpan, frames: Tensor, keys: tuple[int, int]) -> Piece:
    """What `row` sees of positions [keys[0], keys[1])."""
    low, high = keys
    end = row.position + row.count
    gathered = _room(shape, frames.shape[0])
    split = gathered.flatten(0, 1)[: high - low].permute(1, 2, 0, 3).unsqueeze(2)  # [2, J, 1, keys, D]
    is_windowed = shape.window is not None and end - shape.window > low
    if high <= row.position + 1 and not is_windowed:
        return Piece(frames, gathered, split[0], split[1])
    if row.position == 0 and low == 0 and high == end and not is_windowed:
        return Piece(frames, gathered, split[0], split[1], is_causal=True)
    queries, columns = np.arange(row.position, end)[:, None], np.arange(low, high)[None, :]
    hidden = columns > queries
    if shape.window is not None:
        hidden |= columns <= queries - shape.window
    blind = torch.from_numpy(hidden.all(axis=1)) if hidden.all(axis=1).any() else None
    return Piece(frames, gathered, split[0], split[1], _additive(hidden, shape.workspace.dtype), blind)


def _additive(hidden: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(torch.from_numpy(hidden), float("-inf"))


def _write_indexes(shape: AttentionShape, rows: Sequence[RowSpan]) -> tuple[Tensor, Tensor]:
    num_tokens = sum(row.count for row in rows)
    positions = np.empty(num_tokens, dtype=np.int64)
    frames = np.empty(num_tokens, dtype=np.int64)
    for row in rows:
        tokens = slice(row.start, row.start + row.count)
        if row.count == 1:
            positions[row.start] = row.position
            frames[row.start] = row.frames[row.position // shape.page_tokens]
            continue
        positions[tokens] = np.arange(row.position, row.position + row.count)
        frames[tokens] = row.frames[positions[tokens] // shape.page_tokens]
    return torch.from_numpy(frames), torch.from_numpy(positions % shape.page_tokens)
