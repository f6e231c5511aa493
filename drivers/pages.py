"""Carries out the page part of plans for the CPU driver: zeros and moves, between its arena and the host tier.

Copies are real on every path: the host tier outlives the arena, and a page there is guarded by its header and checksum.
"""

from __future__ import annotations

from collections.abc import Mapping

from drivers.arena import Arena, FrameShape
from drivers.contract import CopyTimes, Plan
from drivers.errors import HostPageCorrupt, PageCorrupt, PlanRejected
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.ops.table import OpTable
from memory.page import Move, Tier, Zero

Spaces = Mapping[int, FrameShape]


class PageMover:
    """Zeroes frames and copies pages."""

    def __init__(self, arena: Arena, host: HostMemory | None, ops: OpTable) -> None:
        self._arena = arena
        self._host = host
        self._ops = ops
        self._times = CopyTimes()

    def copied(self) -> CopyTimes:
        """What was copied between the tiers since this was asked last."""
        told, self._times = self._times, CopyTimes()
        return told

    def check(self, plan: Plan, spaces: Spaces) -> None:
        """Whether every frame named lies in its tier. Changes nothing. Raises: PlanRejected."""
        for zero in (*plan.zeros, *plan.late_zeros):
            self._check_frame(zero.space_id, zero.tier, zero.frame, spaces)
        for move in plan.moves:
            self._check_frame(move.space_id, move.source_tier, move.source_frame, spaces)
            self._check_frame(move.space_id, move.target_tier, move.target_frame, spaces)
            if move.source_tier is Tier.HOST and move.target_tier is Tier.HOST:
                raise PlanRejected(f"A page of space {move.space_id} moves inside the host tier, which no driver does.")

    def carry_out(self, plan: Plan, spaces: Spaces) -> None:
        """Zeros first, then moves, in order, then late zeros.

        Raises: PageCorrupt, naming the moves whose source did not hold; everything else was done.
        """
        for zero in plan.zeros:
            self._zero(zero, spaces[zero.space_id])
        corrupt = []
        for idx, move in enumerate(plan.moves):
            try:
                self._move(move, spaces[move.space_id])
            except HostPageCorrupt:
                corrupt.append(idx)
        for zero in plan.late_zeros:
            self._zero(zero, spaces[zero.space_id])
        if corrupt:
            raise PageCorrupt(tuple(corrupt))

    def clear_tail(self, shape: FrameShape, frame: int, num_tokens: int) -> None:
        """Zero what lies behind the first `num_tokens` tokens of a page, in every layer."""
        self._arena.all_layers(shape)[frame, :, num_tokens:].zero_()

    def _zero(self, zero: Zero, shape: FrameShape) -> None:
        if zero.tier is Tier.DEVICE:
            self._ops.page_zero(self._arena.frames(shape.size_bytes), zero.frame)
        else:
            self._host_tier().zero(zero.frame, host_frame_bytes(shape.size_bytes, self._arena.granule_bytes))

    def _move(self, move: Move, shape: FrameShape) -> None:
        if move.source_tier is Tier.HOST:
            self._host_tier().read_page(move.source_frame, self._arena.frame(move.target_frame, shape.size_bytes), move.key, move.space_id)
        elif move.target_tier is Tier.HOST:
            payload = self._arena.frame(move.source_frame, shape.size_bytes)
            self._host_tier().write_page(move.target_frame, payload, move.key, move.num_tokens, move.space_id)
        elif move.source_frame != move.target_frame:
            self._ops.page_copy(self._arena.frames(shape.size_bytes), move.source_frame, move.target_frame)
            if move.num_tokens < shape.page_tokens:
                self.clear_tail(shape, move.target_frame, move.num_tokens)  # a fork must not carry what it does not share

    def _host_tier(self) -> HostMemory:
        if self._host is None:
            raise PlanRejected("A plan names a host frame, but the driver was opened without a host tier.")
        return self._host

    def _check_frame(self, space_id: int, tier: Tier, frame: int, spaces: Spaces) -> None:
        shape = spaces.get(space_id)
        if shape is None:
            raise PlanRejected(f"Space {space_id} is not one of a loaded model.")
        if tier is Tier.DEVICE:
            num_frames = self._arena.num_frames(shape.size_bytes)
        elif tier is Tier.HOST:
            frame_bytes = host_frame_bytes(shape.size_bytes, self._arena.granule_bytes)
            num_frames = (self._host_tier().size_bytes - frame_bytes) // self._arena.granule_bytes + 1
        else:
            raise PlanRejected(f"Space {space_id}: the disk tier is not the driver's.")
        if not 0 <= frame < num_frames:
            raise PlanRejected(f"Frame {frame} of space {space_id} lies outside [0, {num_frames}) of the {tier.name.lower()} tier.")
