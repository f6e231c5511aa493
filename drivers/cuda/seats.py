"""The rows of one model on the device, by row slot, and how the host writes to them.

The tables are those of `drivers.triton.layout`. The host writes a row's sampling when it starts, its page table when it starts or is
patched, and where it stands before a step that does not follow from the one before. All else decode steps do by themselves.

Invariants
1. The last slot is nobody's, and always done: lanes that nobody uses name it.
2. A row whose sampling the device cannot do (`is_simple`) is never advanced there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from drivers.contract import FramePatch
from drivers.cuda.runtime import Runtime
from drivers.rows import Row
from drivers.triton.layout import CUT_COLUMNS, INT_COLUMNS, IS_DONE, MIN_P, POSITION, SEED, STOP_COLUMNS, TEMPERATURE, TOKEN, TOP_K, TOP_P

NO_TOKEN = -1


def is_simple(row: Row) -> bool:
    """Whether the device draws the row's tokens, and knows when it stops."""
    wanted = row.sampling
    return not row.is_scoring and not wanted.has_penalties and wanted.num_logprobs < 0 and len(wanted.stop_token_ids) <= STOP_COLUMNS


class Seats:
    """The tables of one model."""

    def __init__(self, runtime: Runtime, num_slots: int, num_pages: int, num_groups: int) -> None:
        """`num_pages`: of the longest row."""
        self._runtime = runtime
        device = runtime.device
        self.nobody = num_slots
        self.ints = torch.zeros(num_slots + 1, INT_COLUMNS, dtype=torch.int64, device=device)
        self.ints[:, IS_DONE] = 1
        self.stops = torch.full((num_slots + 1, STOP_COLUMNS), NO_TOKEN, dtype=torch.int64, device=device)
        self.cuts = torch.zeros(num_slots + 1, CUT_COLUMNS, dtype=torch.float64, device=device)
        self.tables = tuple(torch.zeros(num_slots + 1, num_pages, dtype=torch.int32, device=device) for _ in range(num_groups))

    def start(self, rows: Sequence[Row]) -> None:
        """Write what does not change while rows run, and their page tables."""
        slots = np.array([row.slot for row in rows], dtype=np.int64)
        stops = np.full((len(rows), STOP_COLUMNS), NO_TOKEN, dtype=np.int64)
        cuts = np.zeros((len(rows), CUT_COLUMNS), dtype=np.float64)
        for idx, row in enumerate(rows):
            if is_simple(row):
                stops[idx, : len(row.sampling.stop_token_ids)] = row.sampling.stop_token_ids
            cuts[idx, [TEMPERATURE, TOP_P, MIN_P]] = row.sampling.temperature, row.sampling.top_p, row.sampling.min_p

        def write() -> None:
            at = self._runtime.sent(slots)
            self.stops[at] = self._runtime.sent(stops)
            self.cuts[at] = self._runtime.sent(cuts)

        self._runtime.compute.run(write)
        self._write_frames([(row.slot, group, 0, table) for row in rows for group, table in enumerate(row.tables)])

    def patch(self, patches: Sequence[FramePatch]) -> None:
        """Write pages of tables."""
        self._write_frames([(patch.slot, patch.group, patch.page_idx, patch.frames) for patch in patches])

    def place(self, rows: Sequence[Row], counts: Sequence[int]) -> None:
        """Write where rows stand before a step that computes `counts` of their tokens: at the last of them, and going on."""
        slots = np.array([row.slot for row in rows], dtype=np.int64)
        ints = np.zeros((len(rows), INT_COLUMNS), dtype=np.int64)
        for idx, (row, count) in enumerate(zip(rows, counts, strict=True)):
            seed = row.sampling.seed & (1 << 64) - 1
            ints[idx, [TOKEN, POSITION, TOP_K]] = row.pending[count - 1], row.position + count - 1, max(0, row.sampling.top_k)
            ints[idx, SEED] = seed - (1 << 64) if seed >> 63 else seed

        def write() -> None:
            self.ints[self._runtime.sent(slots)] = self._runtime.sent(ints)

        self._runtime.compute.run(write)

    def _write_frames(self, runs: Sequence[tuple[int, int, int, Sequence[int] | np.ndarray]]) -> None:
        for group, table in enumerate(self.tables):
            mine = [(slot, page, np.asarray(frames)) for slot, its_group, page, frames in runs if its_group == group and len(frames)]
            if mine:
                slots = np.concatenate([np.full(len(frames), slot) for slot, _page, frames in mine])
                pages = np.concatenate([np.arange(page, page + len(frames)) for _slot, page, frames in mine])
                values = np.stack((slots, pages, np.concatenate([frames for _slot, _page, frames in mine]))).astype(np.int64)
                self._runtime.compute.run(lambda table=table, values=values: self._put(table, values))  # type: ignore[misc]

    def _put(self, table: torch.Tensor, values: np.ndarray) -> None:
        slots, pages, frames = self._runtime.sent(values)
        table[slots, pages] = frames.to(torch.int32)
