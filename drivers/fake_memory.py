"""The memory of the fake driver: an arena whose frames hold witnesses of tokens, so that every mix-up of frames is found.

    frame     |token 0      |token 1      |...                     one stride of room per token, kv_bytes_per_token / groups
    witness   |link ^ tag  u64|token  u32|position  u32|           at the start of the room; the rest of it is zeros

A tag per model and KV group keeps the pages of one from passing for those of another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from crc32c import crc32c

from drivers.contract import LoadSpec, OpenSpec
from drivers.errors import PlanRejected
from drivers.fake_model import mix
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.page_header import HEADER_BYTES
from memory.page import Move, Tier, Zero

GARBAGE = 0xA5
WITNESS = np.dtype([("link", "<u8"), ("token", "<u4"), ("position", "<u4")])


class HistoryLost(Exception):
    """The frames of a row do not hold the row's own history."""


@dataclass(frozen=True, slots=True)
class FakeSpace:
    """One KV group of a loaded model, and how its witnesses lie in a frame."""

    root: int
    tag: int
    token_bytes: int
    frame_bytes: int
    window: int | None


class FakeMemory:
    """The arena and the host tier."""

    def __init__(self, spec: OpenSpec, host_fd: int | None) -> None:
        """Take both. Raises: HostTierInvalid, PlanRejected."""
        if spec.granule_bytes % WITNESS.itemsize:
            raise PlanRejected(f"Granules of {spec.granule_bytes} bytes are no multiple of {WITNESS.itemsize}.")
        self.host = HostMemory(host_fd, spec.host_bytes, spec.granule_bytes) if host_fd is not None else None
        self.arena = np.zeros(spec.num_slabs * spec.slab_bytes, dtype=np.uint8)
        self._witnesses = self.arena.view(WITNESS)
        self.away: set[int] = set()  # slabs that were given back
        self._slab_bytes = spec.slab_bytes
        self._granule_bytes = spec.granule_bytes
        self._page_tokens = spec.page_tokens

    def give_back(self, slabs: Sequence[int]) -> None:
        """Fill slabs with garbage, as their next user would. Raises: PlanRejected, if one is away already."""
        if not self.away.isdisjoint(slabs):
            raise PlanRejected(f"Some of the slabs {list(slabs)} were given back already.")
        self.away |= set(slabs)
        for slab in slabs:
            self.arena[slab * self._slab_bytes : (slab + 1) * self._slab_bytes] = GARBAGE

    def take(self, slabs: Sequence[int]) -> None:
        """Have slabs again. Raises: PlanRejected, if one is not away."""
        if not self.away.issuperset(slabs):
            raise PlanRejected(f"Some of the slabs {list(slabs)} were never given back.")
        self.away -= set(slabs)

    def close(self) -> None:
        """Let go of the host tier."""
        if self.host is not None:
            self.host.close()

    def check(self, space: FakeSpace, tier: Tier, frame: int) -> None:
        """Whether a frame of a space exists in a tier. Raises: PlanRejected."""
        size_bytes = space.frame_bytes if tier is Tier.DEVICE else self.host_frame_bytes(space)
        tier_bytes = {Tier.DEVICE: self.arena.size, Tier.HOST: self.host.size_bytes if self.host else 0}.get(tier, 0)
        if frame < 0 or frame * self._granule_bytes + size_bytes > tier_bytes:
            raise PlanRejected(f"Frame {frame} of the {tier.name.lower()} tier lies outside its {tier_bytes} bytes.")

    def host_frame_bytes(self, space: FakeSpace) -> int:
        """Return the size of a space's frames in the host tier."""
        return host_frame_bytes(space.frame_bytes, self._granule_bytes)

    def zero(self, space: FakeSpace, zero: Zero) -> None:
        """Fill a frame with zeros."""
        if zero.tier is Tier.DEVICE:
            self._frame(space, zero.frame)[:] = 0
        elif self.host is not None:
            self.host.zero(zero.frame, self.host_frame_bytes(space))

    def move(self, space: FakeSpace, move: Move) -> None:
        """Copy a page. Raises: HostPageCorrupt, PlanRejected."""
        tiers = (move.source_tier, move.target_tier)
        if tiers == (Tier.DEVICE, Tier.DEVICE):
            self._frame(space, move.target_frame)[:] = self._frame(space, move.source_frame)
        elif tiers == (Tier.DEVICE, Tier.HOST) and self.host is not None:
            payload = self._frame(space, move.source_frame).data
            self.host.write_page(move.target_frame, payload, move.key, move.num_tokens, move.space_id)
        elif tiers == (Tier.HOST, Tier.DEVICE) and self.host is not None:
            self.host.read_page(move.source_frame, self._frame(space, move.target_frame).data, move.key, move.space_id)
        else:
            raise PlanRejected(f"No copies from {move.source_tier.name} to {move.target_tier.name} here.")

    def spoil(self, host_frame: int) -> None:
        """Flip a bit of the page in a host frame, as failing memory would."""
        self.spoil_byte(host_frame * self._granule_bytes + HEADER_BYTES)

    def spoil_byte(self, offset: int) -> None:
        """Flip a bit of the host tier."""
        if self.host is not None:
            os.pwrite(self.host.fd, bytes([os.pread(self.host.fd, 1, offset)[0] ^ 1]), offset)

    def park(self, places: Sequence[tuple[int, int]], host_offsets: Sequence[int]) -> tuple[int, ...]:
        """Copy parts of the arena, as (offset, size), to the host tier; answers their checksums. Raises: PlanRejected."""
        if self.host is None or len(places) != len(host_offsets):
            raise PlanRejected(f"{len(places)} segments are parked in {len(host_offsets)} places of the host tier.")
        checksums = []
        for (offset, size), start in zip(places, host_offsets, strict=True):
            if not 0 <= start <= self.host.size_bytes - size:
                raise PlanRejected(f"{size} bytes at {start} leave the host tier.")
            part = self.arena[offset : offset + size].tobytes()
            self.host.span(start, size)[:] = part
            checksums.append(crc32c(part))
        return tuple(checksums)

    def image(self, spec: LoadSpec, idx: int, size_bytes: int) -> np.ndarray | None:
        """Segment `idx` as the host tier has it; None, if it has none, or one that does not hold its checksum."""
        if self.host is None or not spec.host_offsets:
            return None
        part = bytes(self.host.span(spec.host_offsets[idx], size_bytes))
        return np.frombuffer(part, dtype=np.uint8) if crc32c(part) == spec.checksums[idx] else None

    def write(self, space: FakeSpace, table: np.ndarray, position: int, tokens: Sequence[int], links: Sequence[int]) -> None:
        """Leave witnesses of `tokens`, the first of which is at `position`, in the frames of a page table."""
        positions = np.arange(position, position + len(tokens))
        rooms = self._rooms(space, table, positions)
        self._witnesses["link"][rooms] = np.array(links, dtype=np.uint64) ^ np.uint64(space.tag)
        self._witnesses["token"][rooms] = tokens
        self._witnesses["position"][rooms] = positions

    def last_link(self, space: FakeSpace, table: np.ndarray, position: int) -> int:
        """Return the link before `position`, having read everything back that the space still keeps of what came before it.

        Raises: HistoryLost, naming the first position that does not follow from the one before.
        """
        if position == 0:
            return space.root
        first = 0 if space.window is None else max(0, position - space.window + 1)
        positions = np.arange(first, position)
        found = self._witnesses[self._rooms(space, table, positions)]
        links = found["link"] ^ np.uint64(space.tag)
        before = np.concatenate((np.array([space.root], dtype=np.uint64), links[:-1]))
        follows = (mix(before, found["token"].astype(np.uint64), positions.astype(np.uint64)) == links) & (found["position"] == positions)
        if first > 0:
            follows[0] = found["position"][0] == first  # what it follows from has left the window
        if not follows.all():
            wrong = first + int(np.argmin(follows))
            raise HistoryLost(f"Position {wrong} is not in frame {table[wrong // self._page_tokens]}.")
        return int(links[-1])

    def _frame(self, space: FakeSpace, frame: int) -> np.ndarray:
        start = frame * self._granule_bytes
        return self.arena[start : start + space.frame_bytes]

    def _rooms(self, space: FakeSpace, table: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the index in `_witnesses` of each position."""
        pages, offsets = np.divmod(positions, self._page_tokens)
        rooms: np.ndarray = (table[pages] * self._granule_bytes + offsets * space.token_bytes) // WITNESS.itemsize
        return rooms
