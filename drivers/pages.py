"""Carries out the page part of plans for the CPU driver: zeros and moves, between its arena and the host tier.

Copies are real on every path: the host tier outlives the arena, and a page there is guarded by its header and checksum. Copies between the
tiers go to `drivers.native` in one call for as many as follow each other; where that is not to be had, `HostMemory` makes them one by one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch

from drivers.arena import Arena, FrameShape
from drivers.contract import CopyTimes, Plan
from drivers.errors import HostPageCorrupt, PageCorrupt, PlanRejected
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.native.pages import NativePages, PageCopy, native_pages
from drivers.ops.table import OpTable
from drivers.plan_check import check_pages
from memory.page import Move, Tier, Zero

MEASURED_FRAME_BYTES = 256 << 10
MEASURED_BYTES = 32 << 20  # each way; more than most caches hold

Spaces = Mapping[int, FrameShape]
_Pending = list[tuple[int, Move]]  # with the index in the plan


class PageMover:
    """Zeroes frames and copies pages."""

    def __init__(
        self, arena: Arena, host: HostMemory | None, ops: OpTable, native: NativePages | None = None, *, checks: bool = True
    ) -> None:
        """`native`: None copies page by page in Python. `checks`: see `NativePages.copy`; without it nothing is good but the timing."""
        self._arena = arena
        self._host = host
        self._ops = ops
        self._native = native
        self._checks = checks
        self._arena_at = arena.bytes.data_ptr()
        self._host_at = 0 if host is None else np.frombuffer(host.span(0, host.size_bytes), dtype=np.uint8).ctypes.data
        self._times = CopyTimes()

    def copied(self) -> CopyTimes:
        """What was copied between the tiers since this was asked last."""
        told, self._times = self._times, CopyTimes()
        return told

    def addresses(self) -> tuple[int, int]:
        """Where the host tier and the arena begin in this process."""
        return self._host_at, self._arena_at

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
        pending: _Pending = []
        for idx, move in enumerate(plan.moves):
            if move.source_tier is move.target_tier:
                corrupt += self._between_tiers(pending, spaces)
                pending = []
                self._inside_device(move, spaces[move.space_id])
            else:
                pending.append((idx, move))
        corrupt += self._between_tiers(pending, spaces)
        for zero in plan.late_zeros:
            self._zero(zero, spaces[zero.space_id])
        if corrupt:
            raise PageCorrupt(tuple(corrupt))

    def _zero(self, zero: Zero, shape: FrameShape) -> None:
        if zero.tier is Tier.DEVICE:
            self._ops.page_zero(self._arena.frames(shape.size_bytes), zero.frame)
        else:
            self._host_tier().zero(zero.frame, host_frame_bytes(shape.size_bytes, self._arena.granule_bytes))

    def _inside_device(self, move: Move, shape: FrameShape) -> None:
        if move.source_frame != move.target_frame:
            self._ops.page_copy(self._arena.frames(shape.size_bytes), move.source_frame, move.target_frame)
            if move.num_tokens < shape.page_tokens:
                self._arena.clear_tail(shape, move.target_frame, move.num_tokens)  # a fork must not carry what it does not share

    def _between_tiers(self, moves: _Pending, spaces: Spaces) -> list[int]:
        """Copy pages up and down, in order. Returns the moves whose source did not hold."""
        if not moves:
            return []
        up_bytes = sum(spaces[move.space_id].size_bytes for _, move in moves if move.source_tier is Tier.HOST)
        down_bytes = sum(spaces[move.space_id].size_bytes for _, move in moves) - up_bytes
        if self._native is not None:
            copies = [self._page_copy(move, spaces[move.space_id].size_bytes) for _, move in moves]
            generation = self._host_tier().boot_generation
            failed, down_s, up_s = self._native.copy(self._host_at, self._arena_at, copies, generation, checks=self._checks)
            corrupt = [moves[idx][0] for idx in failed]
        else:
            corrupt, down_s, up_s = self._one_by_one(moves, spaces)
        old = self._times
        self._times = CopyTimes(old.up_bytes + up_bytes, old.up_s + up_s, old.down_bytes + down_bytes, old.down_s + down_s)
        return corrupt

    def _page_copy(self, move: Move, size_bytes: int) -> PageCopy:
        granule = self._arena.granule_bytes
        is_up = move.source_tier is Tier.HOST
        host, device = (move.source_frame, move.target_frame) if is_up else (move.target_frame, move.source_frame)
        return PageCopy(host * granule, device * granule, size_bytes, move.space_id, move.key, move.num_tokens, is_up)

    def _one_by_one(self, moves: _Pending, spaces: Spaces) -> tuple[list[int], float, float]:
        corrupt: list[int] = []
        took = {Tier.HOST: 0.0, Tier.DEVICE: 0.0}
        for idx, move in moves:
            began = time.perf_counter()
            size_bytes = spaces[move.space_id].size_bytes
            try:
                if move.source_tier is Tier.HOST:
                    target = self._arena.frame(move.target_frame, size_bytes)
                    self._host_tier().read_page(move.source_frame, target, move.key, move.space_id)
                else:
                    payload = self._arena.frame(move.source_frame, size_bytes)
                    self._host_tier().write_page(move.target_frame, payload, move.key, move.num_tokens, move.space_id)
            except HostPageCorrupt:
                corrupt.append(idx)
            took[move.target_tier] += time.perf_counter() - began
        return corrupt, took[Tier.HOST], took[Tier.DEVICE]

    def _host_tier(self) -> HostMemory:
        if self._host is None:
            raise PlanRejected("A plan names a host frame, but the driver was opened without a host tier.")
        return self._host

    def _num_frames(self, space_id: int, tier: Tier, spaces: Spaces) -> int:
        """Frames of a space in a tier lie in [0, this)."""
        shape = spaces.get(space_id)
        if shape is None:
            raise PlanRejected(f"Space {space_id} is not one of a loaded model.")
        if tier is Tier.DEVICE:
            return self._arena.num_frames(shape.size_bytes)
        if tier is Tier.HOST:
            frame_bytes = host_frame_bytes(shape.size_bytes, self._arena.granule_bytes)
            return (self._host_tier().size_bytes - frame_bytes) // self._arena.granule_bytes + 1
        raise PlanRejected(f"Space {space_id}: the disk tier is not the driver's.")


def fastest_mover(arena: Arena, host: HostMemory | None, ops: OpTable) -> PageMover:
    """A mover that copies natively where it can, and whose first report is a short measurement of both ways.

    Pages of zeros go from the arena, which nobody uses yet, to a tier made for it and back: nothing that anybody owns is touched.
    """
    mover = PageMover(arena, host, ops, native_pages())
    frame_bytes = min(MEASURED_FRAME_BYTES, arena.size_bytes) // arena.granule_bytes * arena.granule_bytes
    num_frames = min(MEASURED_BYTES, arena.size_bytes) // frame_bytes
    if host is None:
        return mover
    host_bytes = host_frame_bytes(frame_bytes, arena.granule_bytes)
    scratch = HostMemory.create(num_frames * host_bytes, arena.granule_bytes)
    try:
        trial = PageMover(arena, scratch, ops, native_pages())
        shape = FrameShape(1, 1, 1, 1, frame_bytes, torch.uint8)
        granules, host_granules = frame_bytes // arena.granule_bytes, host_bytes // arena.granule_bytes
        pairs = [(idx * granules, idx * host_granules) for idx in range(num_frames)]
        down = [Move(0, Tier.DEVICE, device, Tier.HOST, there, bytes(16), 1) for device, there in pairs]
        up = [Move(0, Tier.HOST, there, Tier.DEVICE, device, bytes(16), 1) for device, there in pairs]
        for _ in range(2):  # what the second round took is told
            trial.carry_out(Plan(0, 0, moves=(*down, *up)), {0: shape})
            mover._times = trial.copied()
    finally:
        scratch.close()
    return mover
