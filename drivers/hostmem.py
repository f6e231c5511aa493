"""The host tier: pages in a memfd that front and worker both map, and that outlives either of them.

A host frame is a header and the bytes of a device frame, rounded up to granules; frame f starts at byte f * granule_bytes:

    memfd     |------------------------- size_bytes -------------------------| trailer |
    granules  |0      |1      |2      |3      |4      |...
    frame 1           |header|payload      |slack|

    header    128 bytes (`drivers.page_header`)
    trailer, one 4 KiB page behind the last frame
       0 magic  8 B       8 size_bytes  u64      16 granule_bytes  u64      24 boot_generation  u64
      32 num_runs  u32    36 runs of granules that hold weights, u32 first, u32 count each

Who writes what: the worker writes pages while it runs plans; the front zeroes, relabels and restores pages in frames that no plan on its
way names, and alone sets the boot generation. There is no lock: a frame has one writer at a time because the front's epochs say so.

Invariants
1. A header is valid only while its payload is whole: `write_page` breaks the header, copies, and writes the header last, so a process
   that dies in between leaves a frame that says it holds nothing.
2. `read_page` gives bytes only if header checksum, key, space, size and payload checksum all hold; otherwise the target is unchanged.
3. `scan` never gives a header that lies inside the payload of a page that holds, or inside of weights: those of the front that owns the
   tier, and those that were there when it took over.
4. The size of the memfd is sealed: no process can make another one fault by shrinking it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from crc32c import crc32c

from drivers.errors import HostPageCorrupt, HostTierInvalid
from drivers.page_header import HEADER_BYTES, KEY_BYTES, PAGE_MAGIC, PageHeader, pack_header, parse_header

if TYPE_CHECKING:
    from typing_extensions import Buffer

TRAILER_BYTES = 4096

_TIER_MAGIC = b"kd.tier\n"
_TRAILER = struct.Struct("<8sQQQ")
_GENERATION = struct.Struct("<Q")
_GENERATION_OFFSET = 24
_RUNS_OFFSET = 32
_RUN = struct.Struct("<II")
MAX_RUNS = (TRAILER_BYTES - _RUNS_OFFSET - 4) // _RUN.size
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def host_frame_bytes(payload_bytes: int, granule_bytes: int) -> int:
    """Return the room that a page of `payload_bytes` takes in the host tier: header included, whole granules."""
    return -(-(HEADER_BYTES + payload_bytes) // granule_bytes) * granule_bytes


class HostMemory:
    """The host tier, mapped into this process. Frames are named by their first granule."""

    def __init__(self, fd: int, size_bytes: int, granule_bytes: int) -> None:
        """Map an existing tier; `fd` belongs to this object from here on.

        Raises: HostTierInvalid, if it is not a tier of that size and granule; then `fd` is still the caller's.
        """
        _check_descriptor(fd, size_bytes, granule_bytes)
        self.fd = fd
        self.size_bytes = size_bytes
        self.granule_bytes = granule_bytes
        # MAP_POPULATE: 1 GiB in 0.2 s new, 0.04 s existing; left to the first copies, fresh pages would cost six times a warm one.
        # Two threads that populate a half each were no faster.
        self._map = mmap.mmap(fd, size_bytes + TRAILER_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._bytes = memoryview(self._map)
        self._old_weights = self._weights()  # invariant 3

    @classmethod
    def create(cls, size_bytes: int, granule_bytes: int) -> HostMemory:
        """Make a tier of zeros, all of it present. Raises: ValueError, MemoryError."""
        if granule_bytes <= 0 or granule_bytes % HEADER_BYTES or size_bytes <= 0 or size_bytes % granule_bytes:
            raise ValueError(f"{size_bytes} bytes in granules of {granule_bytes}: want whole granules, each a multiple of {HEADER_BYTES}")
        fd = os.memfd_create("kerneld-host-tier", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size_bytes + TRAILER_BYTES)
            os.pwrite(fd, _TRAILER.pack(_TIER_MAGIC, size_bytes, granule_bytes, 0), size_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS)  # invariant 4
            return cls(fd, size_bytes, granule_bytes)
        except BaseException:
            os.close(fd)
            raise

    @property
    def boot_generation(self) -> int:
        """The generation that headers are stamped with: that of the front which owns the tier now."""
        generation: int = _GENERATION.unpack_from(self._bytes, self.size_bytes + _GENERATION_OFFSET)[0]
        return generation

    @boot_generation.setter
    def boot_generation(self, generation: int) -> None:
        _GENERATION.pack_into(self._bytes, self.size_bytes + _GENERATION_OFFSET, generation)

    def write_page(self, frame: int, payload: Buffer, key: bytes, num_tokens: int, space_id: int) -> None:
        """Put a page into a frame. `payload` is any contiguous buffer; its bytes are copied.

        Raises: ValueError, if the frame lies outside the tier or the key is not 16 bytes; then nothing is changed.
        """
        source = memoryview(payload).cast("B")

        def copy(target: memoryview) -> None:
            target[:] = source

        self.fill_page(frame, source.nbytes, copy, (key, space_id, num_tokens))

    def fill_page(self, frame: int, size_bytes: int, fill: Callable[[memoryview], None], named: tuple[bytes, int, int]) -> None:
        """Put a page into a frame whose bytes `fill` writes where they stay; `named`: its key, its space and its tokens.

        Raises: ValueError, as `write_page`; what `fill` raises, and then the frame holds no page.
        """
        key, space_id, num_tokens = named
        if len(key) != KEY_BYTES:
            raise ValueError(f"a page key is {KEY_BYTES} bytes, not {len(key)}")
        start = self._start(frame, HEADER_BYTES + size_bytes)
        self._bytes[start : start + HEADER_BYTES] = bytes(HEADER_BYTES)  # invariant 1: broken first
        payload = self._bytes[start + HEADER_BYTES : start + HEADER_BYTES + size_bytes]
        fill(payload)
        header = PageHeader(key, space_id, num_tokens, size_bytes, self.boot_generation, crc32c(payload))
        self._bytes[start : start + HEADER_BYTES] = pack_header(header)  # invariant 1: written last

    def read_page(self, frame: int, target: Buffer, key: bytes, space_id: int) -> None:
        """Copy the page in a frame to `target`, a writable contiguous buffer of exactly its size.

        Raises: HostPageCorrupt, if the frame does not hold this page of this space; `target` is unchanged.
        """
        sink = memoryview(target).cast("B")
        sink[:] = self.page(frame, sink.nbytes, key, space_id)

    def page(self, frame: int, size_bytes: int, key: bytes, space_id: int) -> memoryview:
        """Return the bytes of a certain page, read-only and checked. Raises: HostPageCorrupt, if the frame does not hold it."""
        header = self._expect(frame)
        if header.key != key:
            raise HostPageCorrupt(frame, "it holds a page with another key")
        if header.space_id != space_id:
            raise HostPageCorrupt(frame, f"it holds a page of space {header.space_id}, not {space_id}")
        if header.payload_bytes != size_bytes:
            raise HostPageCorrupt(frame, f"its page has {header.payload_bytes} bytes, not {size_bytes}")
        return self._verified(frame, header)

    def payload(self, frame: int) -> memoryview:
        """Return the bytes of the page in a frame, read-only and checked; they stay the tier's and change with it.

        Raises: HostPageCorrupt.
        """
        return self._verified(frame, self._expect(frame))

    def frame(self, frame: int, frame_bytes: int) -> memoryview:
        """Return a whole frame, header and all, to be read or written; to be released before the tier is closed. Raises: ValueError."""
        start = self._start(frame, frame_bytes)
        return self._bytes[start : start + frame_bytes]

    def peek(self, frame: int) -> PageHeader | None:
        """Return what a frame says of itself, or None if it holds no page. The payload is not looked at."""
        start = self._start(frame, HEADER_BYTES)
        return self._unpack(start)

    def relabel(self, frame: int, space_id: int) -> None:
        """Give the page in a frame to another space with the same content: a restarted front does this to pages that it keeps.

        Raises: HostPageCorrupt.
        """
        old = self._expect(frame)
        new = PageHeader(old.key, space_id, old.num_tokens, old.payload_bytes, self.boot_generation, old.payload_checksum)
        start = self._start(frame, HEADER_BYTES)
        self._bytes[start : start + HEADER_BYTES] = pack_header(new)

    def zero(self, frame: int, frame_bytes: int) -> None:
        """Fill a frame with zeros, header and all. Raises: ValueError."""
        start = self._start(frame, frame_bytes)
        self._bytes[start : start + frame_bytes] = bytes(frame_bytes)

    def span(self, start: int, size_bytes: int) -> memoryview:
        """Bytes of the tier that are no page's, writable: weights. Raises: ValueError, if they lie outside."""
        if start < 0 or start + size_bytes > self.size_bytes:
            raise ValueError(f"{size_bytes} bytes at {start} lie outside a host tier of {self.size_bytes} bytes")
        return self._bytes[start : start + size_bytes]

    def mark_weights(self, runs: list[tuple[int, int]]) -> None:
        """Say where weights lie, before they are written: runs of granules as (first, count), in order; the last of too many as one."""
        if len(runs) > MAX_RUNS:
            first = runs[MAX_RUNS - 1][0]
            runs = [*runs[: MAX_RUNS - 1], (first, sum(runs[-1]) - first)]  # a later front finds no pages between them
        at = self.size_bytes + _RUNS_OFFSET
        self._bytes[at : at + 4] = len(runs).to_bytes(4, "little")
        for idx, run in enumerate(runs):
            _RUN.pack_into(self._bytes, at + 4 + idx * _RUN.size, *run)

    def _weights(self) -> list[tuple[int, int]]:
        at = self.size_bytes + _RUNS_OFFSET
        num_runs = int.from_bytes(self._bytes[at : at + 4], "little")
        return [_RUN.unpack_from(self._bytes, at + 4 + idx * _RUN.size) for idx in range(min(num_runs, MAX_RUNS))]

    def scan(self) -> Iterator[tuple[int, PageHeader]]:
        """Give every frame that holds a page, in order. Payloads are checked only where two headers claim the same bytes.

        Frames of different sizes may have shared the room one after the other, so a header can be a leftover that a later page has
        partly overwritten, or plain bytes inside a payload. Of two that overlap, the first stands if its payload holds; else it goes.
        """
        candidates = self._candidates()
        end = 0
        for idx, (frame, header) in enumerate(candidates):
            if frame < end:
                continue  # invariant 3
            after = frame + host_frame_bytes(header.payload_bytes, self.granule_bytes) // self.granule_bytes
            is_contested = idx + 1 < len(candidates) and candidates[idx + 1][0] < after
            if is_contested and not self._holds(frame, header):
                continue
            end = after
            yield frame, header

    def close(self) -> None:
        """Unmap the tier and close the descriptor. Safe to call twice. Raises: BufferError, if a payload view is still held."""
        if self.fd < 0:
            return
        self._bytes.release()
        self._map.close()
        os.close(self.fd)
        self.fd = -1

    def _candidates(self) -> list[tuple[int, PageHeader]]:
        words = np.frombuffer(self._map, dtype=np.uint64, count=self.size_bytes // 8)
        magic = np.frombuffer(PAGE_MAGIC, dtype=np.uint64)[0]
        frames = np.flatnonzero(words[:: self.granule_bytes // 8] == magic).tolist()
        del words  # it would keep the mapping from being closed
        weights = self._old_weights + self._weights()
        frames = [frame for frame in frames if not any(first <= frame < first + count for first, count in weights)]  # invariant 3
        headers = ((frame, self._unpack(frame * self.granule_bytes)) for frame in frames)
        return [(frame, header) for frame, header in headers if header is not None]

    def _start(self, frame: int, needed_bytes: int) -> int:
        start = frame * self.granule_bytes
        if frame < 0 or start + needed_bytes > self.size_bytes:
            raise ValueError(f"frame {frame} with {needed_bytes} bytes lies outside a host tier of {self.size_bytes} bytes")
        return start

    def _unpack(self, start: int) -> PageHeader | None:
        header = parse_header(bytes(self._bytes[start : start + HEADER_BYTES]))
        return None if header is None or start + HEADER_BYTES + header.payload_bytes > self.size_bytes else header

    def _expect(self, frame: int) -> PageHeader:
        header = self.peek(frame)
        if header is None:
            raise HostPageCorrupt(frame, "it holds no page")
        return header

    def _view(self, frame: int, header: PageHeader) -> memoryview:
        start = frame * self.granule_bytes + HEADER_BYTES
        return self._bytes[start : start + header.payload_bytes].toreadonly()

    def _holds(self, frame: int, header: PageHeader) -> bool:
        return crc32c(self._view(frame, header)) == header.payload_checksum

    def _verified(self, frame: int, header: PageHeader) -> memoryview:
        if not self._holds(frame, header):
            raise HostPageCorrupt(frame, "its bytes do not match their checksum")
        return self._view(frame, header)


def _check_descriptor(fd: int, size_bytes: int, granule_bytes: int) -> None:
    try:
        actual_bytes = os.fstat(fd).st_size
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        trailer = os.pread(fd, _TRAILER.size, size_bytes)
    except OSError as error:
        raise HostTierInvalid(str(error)) from error
    if actual_bytes != size_bytes + TRAILER_BYTES or seals & _SIZE_SEALS != _SIZE_SEALS:
        raise HostTierInvalid(f"Expected {size_bytes} bytes and a sealed size, found {actual_bytes - TRAILER_BYTES} and seals {seals:#x}.")
    if trailer[:_GENERATION_OFFSET] != _TRAILER.pack(_TIER_MAGIC, size_bytes, granule_bytes, 0)[:_GENERATION_OFFSET]:
        raise HostTierInvalid(f"Its trailer does not speak of {size_bytes} bytes in granules of {granule_bytes}.")
