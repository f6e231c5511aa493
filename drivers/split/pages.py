"""Carries out the page part of plans on a split device: a frame is its parts on all stages, and a page of the host tier all of them.

    host tier   | header | part of stage 0 | part of stage 1 |      one key, one checksum

Copies wait for each other; a page is on every stage or on none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from drivers.contract import CopyTimes, Plan
from drivers.errors import HostPageCorrupt, PageCorrupt, PlanRejected
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.plan_check import check_pages
from drivers.split.memory import SplitMemory
from drivers.tails import PageTails
from memory.page import Move, Tier, Zero


@dataclass(frozen=True, slots=True)
class SplitFrame:
    """A frame of one KV group."""

    num_granules: int
    page_tokens: int
    parts: tuple[PageTails, ...]  # by stage

    def clear_tail(self, frame: int, num_tokens: int) -> None:
        """Zero what lies behind the first `num_tokens` tokens of a page."""
        for part in self.parts:
            part.clear_tail(frame, num_tokens)


Spaces = Mapping[int, SplitFrame]


class SplitMover:
    """Zeroes frames and copies pages."""

    def __init__(self, memory: SplitMemory, host: HostMemory | None) -> None:
        self._memory = memory
        self._host = host
        self._times = CopyTimes()

    def copied(self) -> CopyTimes:
        """What was copied between the tiers since this was asked last."""
        told, self._times = self._times, CopyTimes()
        return told

    def check(self, plan: Plan, spaces: Spaces) -> None:
        """Whether every frame named lies in its tier. Changes nothing. Raises: PlanRejected."""
        check_pages(plan, lambda space_id, tier: self._num_frames(space_id, tier, spaces))

    def carry_out(self, plan: Plan, spaces: Spaces) -> None:
        """Zeros first, then moves, in order, then late zeros.

        Raises: PageCorrupt, naming the moves whose source did not hold; everything else was done.
        """
        for zero in plan.zeros:
            self._zero(zero, spaces[zero.space_id])
        corrupt: list[int] = []
        for idx, move in enumerate(plan.moves):
            try:
                self._move(move, spaces[move.space_id])
            except HostPageCorrupt:
                corrupt.append(idx)
        for zero in plan.late_zeros:
            self._zero(zero, spaces[zero.space_id])
        if corrupt:
            raise PageCorrupt(tuple(corrupt))

    def _zero(self, zero: Zero, frame: SplitFrame) -> None:
        if zero.tier is Tier.HOST:
            self._host_tier().zero(zero.frame, self._host_bytes(frame))
        else:
            self._memory.zero(zero.frame, frame.num_granules)

    def _move(self, move: Move, frame: SplitFrame) -> None:
        """Raises: HostPageCorrupt."""
        if move.source_tier is move.target_tier:
            self._inside(move, frame)
            return
        size_bytes, began = frame.num_granules * self._memory.granule_bytes, time.perf_counter()
        is_up, old = move.source_tier is Tier.HOST, self._times
        if is_up:
            self._memory.restore(move.target_frame, self._host_tier().page(move.source_frame, size_bytes, move.key, move.space_id))
            took = time.perf_counter() - began
            self._times = CopyTimes(old.up_bytes + size_bytes, old.up_s + took, old.down_bytes, old.down_s)
        else:
            named = (move.key, move.space_id, move.num_tokens)
            self._host_tier().fill_page(move.target_frame, size_bytes, lambda payload: self._memory.save(move.source_frame, payload), named)
            took = time.perf_counter() - began
            self._times = CopyTimes(old.up_bytes, old.up_s, old.down_bytes + size_bytes, old.down_s + took)

    def _inside(self, move: Move, frame: SplitFrame) -> None:
        if move.source_frame == move.target_frame:
            return
        self._memory.copy(move.source_frame, move.target_frame, frame.num_granules)
        if move.num_tokens < frame.page_tokens:
            frame.clear_tail(move.target_frame, move.num_tokens)  # a fork must not carry what it does not share

    def _host_tier(self) -> HostMemory:
        if self._host is None:
            raise PlanRejected("A plan names a host frame, but the driver was opened without a host tier.")
        return self._host

    def _host_bytes(self, frame: SplitFrame) -> int:
        granule = self._memory.granule_bytes
        return host_frame_bytes(frame.num_granules * granule, granule)

    def _num_frames(self, space_id: int, tier: Tier, spaces: Spaces) -> int:
        """Frames of a space in a tier lie in [0, this)."""
        frame = spaces.get(space_id)
        if frame is None:
            raise PlanRejected(f"Space {space_id} is not one of a loaded model.")
        if tier is Tier.DEVICE:
            return self._memory.num_granules - frame.num_granules + 1
        if tier is Tier.HOST:
            return (self._host_tier().size_bytes - self._host_bytes(frame)) // self._memory.granule_bytes + 1
        raise PlanRejected(f"Space {space_id}: the disk tier is not the driver's.")
