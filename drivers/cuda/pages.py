"""The page part of plans: zeros, and copies inside the device and between it and the host tier.

    compute  ... steps of older plans |                                  | steps of this plan ...
    copies                            | zeros  moves  late zeros |       ^ waits
                                      ^ waits (the epoch rule)   ^ `settle`: headers of pages that went down

The host tier is pinned, so pages are copied straight into and out of their frames there. A page that comes up is checked by the host before
it is copied; one that goes down gets its header when it is there.

Invariants
1. The epoch rule: a copy or a zero begins behind the last step that was queued before it, whoever still waits for that step's answer, and a
   step begins behind the copies and zeros of its plan. So a frame may change its owner from one plan to the next.
2. A frame of the host tier says that it holds nothing from before its copy until its payload is whole.
3. `settle` comes before a page that went down is read, and before the plan is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from crc32c import crc32c
from torch import Tensor

from drivers.contract import CopyTimes, Plan
from drivers.cuda.model import FrameForm
from drivers.cuda.runtime import DeviceArena, Event, Runtime
from drivers.errors import HostPageCorrupt, PageCorrupt, PlanRejected
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.page_header import HEADER_BYTES, PageHeader, pack_header
from drivers.plan_check import check_pages
from memory.page import Move, Tier, Zero

Spaces = Mapping[int, FrameForm]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GoingDown:
    """A page on its way to the host tier."""

    move: Move
    frame: memoryview  # header and payload
    payload: Tensor


class CudaMover:
    """Zeroes frames and copies pages."""

    def __init__(self, runtime: Runtime, arena: DeviceArena, host: HostMemory | None, granule_bytes: int) -> None:
        self._runtime = runtime
        self._arena = arena.bytes
        self._host = host
        self._granule = granule_bytes
        self._down: list[GoingDown] = []
        self._spans: list[tuple[Event, Event, int, bool]] = []  # begin, end, bytes, is up
        self._times = CopyTimes()

    def check(self, plan: Plan, spaces: Spaces) -> None:
        """Whether every frame named lies in its tier. Changes nothing. Raises: PlanRejected."""
        check_pages(plan, lambda space_id, tier: self._num_frames(space_id, tier, spaces))

    def carry_out(self, plan: Plan, spaces: Spaces) -> None:
        """Queue zeros, moves in order, and late zeros. Raises: PageCorrupt; everything else is queued."""
        if not (plan.zeros or plan.moves or plan.late_zeros):
            return
        copies, compute = self._runtime.copies, self._runtime.compute
        copies.after(compute.record())  # invariant 1
        self._zero(plan.zeros, spaces)
        corrupt: list[int] = []
        for run in _runs(plan.moves):
            corrupt += self._move(run, plan.moves, spaces)
        if any(zero.tier is Tier.HOST for zero in plan.late_zeros):
            self.settle()
            copies.record().wait()  # what came up from there has been read
        self._zero(plan.late_zeros, spaces)
        compute.after(copies.record())  # invariant 1
        if corrupt:
            self.settle()
            raise PageCorrupt(tuple(corrupt))

    def settle(self) -> None:
        """Wait for copies, and give pages that went down their headers (invariants 2 and 3)."""
        if self._spans:
            self._spans[-1][1].wait()
        for page in self._down:
            size = page.payload.numel()
            checksum = crc32c(page.payload.numpy().data)
            header = PageHeader(page.move.key, page.move.space_id, page.move.num_tokens, size, self._tier().boot_generation, checksum)
            page.frame[:HEADER_BYTES] = pack_header(header)
        self._down.clear()
        for begin, end, size, is_up in self._spans:
            seconds, old = max(end.seconds_since(begin), 1e-9), self._times
            up = (old.up_bytes + size, old.up_s + seconds) if is_up else (old.up_bytes, old.up_s)
            down = (old.down_bytes, old.down_s) if is_up else (old.down_bytes + size, old.down_s + seconds)
            self._times = CopyTimes(*up, *down)
        self._spans.clear()

    def copied(self) -> CopyTimes:
        """What was copied between the tiers since this was asked last."""
        self.settle()
        told, self._times = self._times, CopyTimes()
        return told

    # ------------------------------------------------------------------------------------------------------------------------------ moves

    def _move(self, run: Sequence[int], moves: Sequence[Move], spaces: Spaces) -> list[int]:
        """Moves of one kind. Returns those whose source did not hold."""
        first = moves[run[0]]
        if first.source_tier is first.target_tier:
            self._inside([moves[idx] for idx in run], spaces)
            return []
        begin, is_up, corrupt = self._runtime.copies.record(), first.source_tier is Tier.HOST, list[int]()
        if is_up:
            self.settle()  # invariant 3: a page may come up that goes down in the same plan
        for idx in run:
            try:
                (self._bring if is_up else self._take_down)(moves[idx], spaces[moves[idx].space_id].size_bytes)
            except HostPageCorrupt:
                corrupt.append(idx)
        size = sum(spaces[moves[idx].space_id].size_bytes for idx in run)
        self._spans.append((begin, self._runtime.copies.record(), size, is_up))
        return corrupt

    def _bring(self, move: Move, size_bytes: int) -> None:
        """Check a page of the host tier, and queue its copy. Raises: HostPageCorrupt."""
        host, frame = self._tier(), move.source_frame
        header = host.peek(frame)
        if header is None or (header.key, header.space_id, header.payload_bytes) != (move.key, move.space_id, size_bytes):
            raise HostPageCorrupt(frame, "it does not hold the page that was asked for")
        host.payload(frame)
        whole = host.frame(frame, HEADER_BYTES + size_bytes)
        self._copy(self._bytes(move.target_frame, size_bytes), _tensor_of(whole[HEADER_BYTES:]))

    def _take_down(self, move: Move, size_bytes: int) -> None:
        whole = self._tier().frame(move.target_frame, HEADER_BYTES + size_bytes)
        whole[:HEADER_BYTES] = bytes(HEADER_BYTES)  # invariant 2
        payload = _tensor_of(whole[HEADER_BYTES:])
        self._copy(payload, self._bytes(move.source_frame, size_bytes))
        self._down.append(GoingDown(move, whole, payload))

    def _copy(self, target: Tensor, source: Tensor) -> None:
        self._runtime.copies.run(lambda: _copy(target, source))

    def _bytes(self, frame: int, size_bytes: int) -> Tensor:
        start = frame * self._granule
        return self._arena[start : start + size_bytes]

    def _inside(self, moves: Sequence[Move], spaces: Spaces) -> None:
        """Copies inside the device; of a page that is not full, what lies behind its tokens stays here."""
        for space_id, run in _by_space(moves, lambda move: move.space_id).items():
            form = spaces[space_id]
            pairs = np.array(
                [(move.source_frame, move.target_frame) for move in run if move.source_frame != move.target_frame], dtype=np.int64
            )
            short = [move for move in run if move.source_frame != move.target_frame and move.num_tokens < form.layer.page_tokens]
            cuts = np.array([(move.target_frame, move.num_tokens) for move in short], dtype=np.int64)
            if len(pairs):
                self._runtime.copies.run(lambda form=form, pairs=pairs, cuts=cuts: self._copy_inside(form, pairs, cuts))  # type: ignore[misc]

    def _copy_inside(self, form: FrameForm, pairs: np.ndarray, cuts: np.ndarray) -> None:
        kernels, sent = self._runtime.kernels, self._runtime.sent
        kernels.copy_frames(self._arena, self._granule, form.size_bytes, sent(pairs))
        if len(cuts):
            kernels.clear_tails(self._arena, self._granule, form.layer, form.num_layers, sent(cuts))

    # ------------------------------------------------------------------------------------------------------------------------------ zeros

    def _zero(self, zeros: Sequence[Zero], spaces: Spaces) -> None:
        for zero in zeros:
            if zero.tier is Tier.HOST:
                self._tier().zero(zero.frame, host_frame_bytes(spaces[zero.space_id].size_bytes, self._granule))
        for space_id, run in _by_space([zero for zero in zeros if zero.tier is Tier.DEVICE], lambda zero: zero.space_id).items():
            frames, size = np.array([zero.frame for zero in run], dtype=np.int64), spaces[space_id].size_bytes
            self._runtime.copies.run(lambda frames=frames, size=size: self._zero_frames(frames, size))  # type: ignore[misc]

    def _zero_frames(self, frames: np.ndarray, size_bytes: int) -> None:
        self._runtime.kernels.zero_frames(self._arena, self._granule, size_bytes, self._runtime.sent(frames))

    def _tier(self) -> HostMemory:
        if self._host is None:
            raise PlanRejected("A plan names a host frame, but the driver was opened without a host tier.")
        return self._host

    def _num_frames(self, space_id: int, tier: Tier, spaces: Spaces) -> int:
        """Frames of a space in a tier lie in [0, this)."""
        form = spaces.get(space_id)
        if form is None:
            raise PlanRejected(f"Space {space_id} is not one of a loaded model.")
        if tier is Tier.DEVICE:
            return (self._arena.numel() - form.size_bytes) // self._granule + 1
        if tier is Tier.HOST:
            return (self._tier().size_bytes - host_frame_bytes(form.size_bytes, self._granule)) // self._granule + 1
        raise PlanRejected(f"Space {space_id}: the disk tier is not the driver's.")


def _runs(moves: Sequence[Move]) -> list[list[int]]:
    """Moves of one kind that follow each other; inside the device, such as do not touch what another of them writes or reads."""
    runs: list[list[int]] = []
    kind: tuple[Tier, Tier] | None = None
    read: set[int] = set()
    written: set[int] = set()
    for idx, move in enumerate(moves):
        is_inside = move.source_tier is move.target_tier
        clashes = is_inside and (move.source_frame in written or move.target_frame in written | read)
        if (move.source_tier, move.target_tier) != kind or clashes:
            runs.append([])
            read, written = set(), set()
        kind = (move.source_tier, move.target_tier)
        read.add(move.source_frame)
        written.add(move.target_frame)
        runs[-1].append(idx)
    return runs


def _by_space(items: Sequence[T], space: Callable[[T], int]) -> dict[int, list[T]]:
    found: dict[int, list[T]] = {}
    for item in items:
        found.setdefault(space(item), []).append(item)
    return found


def _tensor_of(memory: memoryview) -> Tensor:
    return torch.from_numpy(np.frombuffer(memory, dtype=np.uint8))


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source, non_blocking=True)
