from __future__ import annotations

import struct

import pytest
from crc32c import crc32c

from drivers.page_header import HEADER_BYTES, PageHeader, pack_header, parse_header

HEADER = PageHeader(b"0123456789abcdef", space_id=7, num_tokens=16, payload_bytes=1 << 40, boot_generation=3, payload_checksum=0xFEDCBA98)


def test_what_was_packed_is_parsed() -> None:
    raw = pack_header(HEADER)
    assert len(raw) == HEADER_BYTES
    assert parse_header(raw) == HEADER


@pytest.mark.parametrize(("at", "word"), [(0, b"kd.tier\n"), (8, struct.pack("<I", 2))], ids=["magic", "version"])
def test_what_is_no_header_of_this_kind_is_none_whatever_its_checksum_says(at: int, word: bytes) -> None:
    raw = bytearray(pack_header(HEADER))
    raw[at : at + len(word)] = word
    raw[-4:] = struct.pack("<I", crc32c(bytes(raw[:-4])))
    assert parse_header(bytes(raw)) is None
