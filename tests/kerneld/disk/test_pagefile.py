"""The page file: what is written to a frame is read from it, holes are holes, and a restart finds the pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers.hostmem import HostMemory
from kerneld.disk.pagefile import SUPERBLOCK_BYTES, PageFile
from kerneld.errors import Unavailable

GRANULE, SLAB, SIZE = 4096, 64 << 10, 1 << 20
FRAME = 2 * GRANULE  # of a page with PAYLOAD bytes
PAYLOAD = bytes(range(256)) * 20


@pytest.fixture
def host() -> Iterator[HostMemory]:
    tier = HostMemory.create(256 << 10, GRANULE)
    yield tier
    tier.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[PageFile]:
    opened = open_file(tmp_path)
    yield opened
    opened.close()


def open_file(folder: Path, *, granule: int = GRANULE) -> PageFile:
    return PageFile.open(folder / "pages", SIZE, granule, SLAB)


def put(file: PageFile, host: HostMemory, frame: int, key: bytes) -> None:
    """Write a page to a frame of the file."""
    host.write_page(0, PAYLOAD, key, 16, space_id=7)
    with host.frame(0, FRAME) as image:
        file.write(frame, image)


def get(file: PageFile, host: HostMemory, frame: int) -> bytes:
    """What lies in a frame of the file."""
    with host.frame(4, FRAME) as image:
        file.read(frame, image)
        return bytes(image)


def test_a_frame_is_read_as_it_was_written(file: PageFile, host: HostMemory) -> None:
    put(file, host, 6, b"k" * 16)

    get(file, host, 6)

    header = host.peek(4)
    assert header is not None
    assert (header.key, header.num_tokens, header.space_id) == (b"k" * 16, 16, 7)
    assert host.payload(4) == PAYLOAD


def test_the_file_is_its_owners_alone_and_takes_no_space_at_first(file: PageFile) -> None:
    assert os.stat(file.path).st_mode & 0o777 == 0o600
    assert os.stat(file.path).st_size == SUPERBLOCK_BYTES + SIZE
    assert file.used_bytes <= SUPERBLOCK_BYTES


def test_a_punched_frame_is_zeros_and_gives_its_space_back(file: PageFile, host: HostMemory) -> None:
    put(file, host, 2, b"a" * 16)
    put(file, host, 8, b"b" * 16)
    os.sync()
    before = file.used_bytes

    file.punch(2, FRAME)

    assert get(file, host, 2) == bytes(FRAME)
    assert before - file.used_bytes == FRAME
    assert [frame for frame, _header in file.scan()] == [8]


def test_a_restart_finds_every_page(tmp_path: Path, host: HostMemory) -> None:
    file = open_file(tmp_path)
    for frame, key in ((0, b"a"), (2, b"b"), (200, b"c"), (254, b"d")):
        put(file, host, frame, key * 16)
    file.close()

    again = open_file(tmp_path)

    assert [(frame, header.key[:1]) for frame, header in again.scan()] == [(0, b"a"), (2, b"b"), (200, b"c"), (254, b"d")]
    again.close()


def test_only_what_is_named_is_kept(file: PageFile, host: HostMemory) -> None:
    for frame in (0, 2, 4, 100):
        put(file, host, frame, b"k" * 16)

    file.keep_only([(2, FRAME), (100, FRAME)])

    assert [frame for frame, _header in file.scan()] == [2, 100]
    assert get(file, host, 0) == get(file, host, 4) == bytes(FRAME)


def test_a_page_within_the_payload_of_a_page_is_not_found(file: PageFile, host: HostMemory) -> None:
    host.write_page(1, PAYLOAD, b"i" * 16, 16, space_id=7)
    with host.frame(1, FRAME) as inner:
        payload = bytes(GRANULE - 128) + bytes(inner)
    host.write_page(8, payload, b"o" * 16, 16, space_id=7)
    with host.frame(8, 4 * GRANULE) as image:
        file.write(0, image)

    assert [header.key[:1] for _frame, header in file.scan()] == [b"o"]


def test_frames_smaller_than_a_block_pass_through_the_page_cache(tmp_path: Path) -> None:
    host = HostMemory.create(4096, 256)
    file = open_file(tmp_path, granule=256)
    host.write_page(1, b"x" * 100, b"k" * 16, 4, space_id=7)

    with host.frame(1, 256) as image:
        file.write(3, image)

    assert not file.is_direct
    assert [frame for frame, _header in file.scan()] == [3]
    file.close()
    host.close()


def test_a_file_that_was_cut_short_says_so(file: PageFile, host: HostMemory) -> None:
    put(file, host, 20, b"k" * 16)
    os.truncate(file.path, SUPERBLOCK_BYTES + 21 * GRANULE)

    with pytest.raises(OSError, match="ends within frame 20"):
        get(file, host, 20)


def test_another_granule_begins_the_file_anew(tmp_path: Path, host: HostMemory) -> None:
    file = open_file(tmp_path)
    put(file, host, 0, b"k" * 16)
    file.close()

    again = open_file(tmp_path, granule=8192)

    assert list(again.scan()) == []
    assert again.used_bytes <= SUPERBLOCK_BYTES
    again.close()


@pytest.mark.parametrize("at", [8, 20, 61])
def test_another_version_or_a_damaged_superblock_begins_the_file_anew(tmp_path: Path, host: HostMemory, at: int) -> None:
    file = open_file(tmp_path)
    put(file, host, 0, b"k" * 16)
    with file.path.open("r+b") as raw:
        raw.seek(at)
        raw.write(b"\xff")
    file.close()

    again = open_file(tmp_path)

    assert list(again.scan()) == []
    again.close()


def test_a_file_that_is_no_page_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "pages").write_bytes(b"my thesis")

    file = open_file(tmp_path)

    assert (tmp_path / "pages.aside").read_bytes() == b"my thesis"
    assert list(file.scan()) == []
    file.close()


def test_a_larger_tier_keeps_its_pages(tmp_path: Path, host: HostMemory) -> None:
    file = open_file(tmp_path)
    put(file, host, 10, b"k" * 16)
    file.close()

    again = PageFile.open(tmp_path / "pages", 2 * SIZE, GRANULE, SLAB)

    assert [frame for frame, _header in again.scan()] == [10]
    again.close()


def test_two_daemons_do_not_share_a_file(tmp_path: Path, file: PageFile) -> None:
    with pytest.raises(Unavailable, match="page_file"):
        open_file(tmp_path)


def test_a_file_that_is_cut_while_it_is_looked_through_ends_there(file: PageFile, host: HostMemory) -> None:
    for frame in (0, 2, 4):
        put(file, host, frame, b"k" * 16)
    found = file.scan()
    first = next(found)
    os.truncate(file.path, SUPERBLOCK_BYTES + 2 * GRANULE + 30)

    assert [first[0], *(frame for frame, _header in found)] == [0]
