"""`pages.c` as Python sees it: page copies between two stretches of memory, with headers and checksums, many in one call."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from drivers.native.build import library

MOVE = struct.Struct("<QQQQ16sIBB2x")  # host and device offset, size, space, key, tokens, is_up, has_failed: `struct move` in pages.c
_FAILED_OFFSET = 53


class PageCopy(NamedTuple):
    """One copy. Offsets are bytes from the start of the host tier and of the arena; `is_up` is from host to device."""

    host: int
    device: int
    size_bytes: int
    space_id: int
    key: bytes
    num_tokens: int
    is_up: bool


class CopyOutcome(NamedTuple):
    """What came of a call: which copies found a page that does not hold, and the seconds of all."""

    failed: list[int]
    down_s: float
    up_s: float


class NativePages:
    """The library, loaded."""

    def __init__(self, loaded: ctypes.CDLL, width: int) -> None:
        self.width = width  # 2: 512 bits at a time, 1: 128
        self._move = loaded.kd_move_pages
        self._move.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_uint64,
            ctypes.c_int,
            ctypes.c_void_p,
        ]
        self._checksum = loaded.kd_checksum
        self._checksum.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
        self._checksum.restype = ctypes.c_uint32
        self._stretch = loaded["kd_checksum"]
        self._stretch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._stretch.restype = ctypes.c_uint32

    def copy(self, tier: int, arena: int, copies: Sequence[PageCopy], boot_generation: int, *, checks: bool = True) -> CopyOutcome:
        """Make copies in order, between the addresses `tier` and `arena`, without the interpreter's lock.

        Bounds are the caller's to check. `checks`: without it payloads get and need no checksum, which is for measuring alone.
        """
        records = bytearray(MOVE.size * len(copies))
        for idx, copy in enumerate(copies):
            MOVE.pack_into(records, idx * MOVE.size, *copy, 0)
        took = (ctypes.c_double * 2)()
        held = (ctypes.c_char * len(records)).from_buffer(records)
        num_failed = self._move(tier, arena, held, len(copies), boot_generation, checks, took)
        failed = [idx for idx in range(len(copies)) if records[idx * MOVE.size + _FAILED_OFFSET]] if num_failed else []
        return CopyOutcome(failed, took[0], took[1])

    def copy_stretch(self, target: int, source: int, size_bytes: int) -> int:
        """Copy bytes from one address to another in one pass, without the interpreter's lock; answers their CRC32C."""
        return int(self._stretch(target, source, size_bytes, self.width))

    def checksum(self, content: bytes, width: int = 0) -> int:
        """CRC32C of some bytes; `width` names a narrower way of computing it than the widest that the processor has."""
        return int(self._checksum(None, content, len(content), min(width or self.width, self.width)))


@cache
def native_pages() -> NativePages | None:
    """The library, or None where it cannot be built or the processor lacks the instructions."""
    loaded = library("pages")
    width = 0 if loaded is None else loaded.kd_start()
    return NativePages(loaded, width) if loaded is not None and width else None
