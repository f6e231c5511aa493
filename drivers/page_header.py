"""The header of a page outside of the device: it says which page it is, and whether its bytes are whole.

128 bytes, little endian
   0 magic          8 B      32 space_id         u64     56 payload crc32c  u32
   8 version        u32      40 payload_bytes    u64     60 zeros           64 B
  12 num_tokens     u32      48 boot_generation  u64    124 header crc32c   u32 (of bytes 0 .. 123)
  16 key            16 B
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crc32c import crc32c

HEADER_BYTES = 128
KEY_BYTES = 16
PAGE_MAGIC = b"kd.page\n"
_VERSION = 1
_HEADER = struct.Struct("<8sII16sQQQI64x")
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class PageHeader:
    """What a host frame says of the page in it."""

    key: bytes
    space_id: int
    num_tokens: int
    payload_bytes: int
    boot_generation: int
    payload_checksum: int


def parse_header(raw: bytes) -> PageHeader | None:
    """Return the page header in 128 bytes, or None if there is none, or one of another version."""
    magic, version, num_tokens, key, space_id, payload_bytes, generation, checksum = _HEADER.unpack_from(raw)
    if magic != PAGE_MAGIC or version != _VERSION or _CHECKSUM.unpack_from(raw, _HEADER.size)[0] != crc32c(raw[: _HEADER.size]):
        return None
    return PageHeader(key, space_id, num_tokens, payload_bytes, generation, checksum)


def pack_header(header: PageHeader) -> bytes:
    """Return a header as the 128 bytes that `parse_header` reads."""
    sizes = header.payload_bytes, header.boot_generation, header.payload_checksum
    body = _HEADER.pack(PAGE_MAGIC, _VERSION, header.num_tokens, header.key, header.space_id, *sizes)
    return body + _CHECKSUM.pack(crc32c(body))
