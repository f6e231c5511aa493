"""The C of page copies says exactly what `drivers.hostmem` says."""

from __future__ import annotations

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from drivers.native.pages import NativePages, native_pages


def native() -> NativePages:
    """The library; a machine that runs these tests has a compiler, and a processor with the crc32 instruction."""
    found = native_pages()
    assert found is not None
    return found


@given(st.binary(max_size=3000), st.sampled_from([1, 2]))
def test_checksums_are_those_of_the_library(content: bytes, width: int) -> None:
    assert native().checksum(content, width) == crc32c(content)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("size_bytes", [0, 1, 7, 8, 63, 64, 127, 128, 191, 192, 255, 256, 511, 512, 767, 768, 1024, 65_537])
def test_checksums_hold_at_every_edge_of_the_folding(size_bytes: int, width: int) -> None:
    content = bytes((idx * 131 + idx // 251) % 256 for idx in range(size_bytes))

    assert native().checksum(content, width) == crc32c(content)
