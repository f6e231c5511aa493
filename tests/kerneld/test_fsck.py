"""The page file of a daemon that is stopped, read to its end."""

from __future__ import annotations

from pathlib import Path

from drivers.hostmem import HostMemory, host_frame_bytes
from kerneld.disk.pagefile import SUPERBLOCK_BYTES, PageFile, granule_of
from kerneld.fsck import check_page_file

GRANULE = 512
PAYLOAD = 1000
FRAME = host_frame_bytes(PAYLOAD, GRANULE)


def page_file(path: Path, num_pages: int) -> Path:
    """A page file with pages one behind the other, as a daemon leaves it."""
    host = HostMemory.create(64 * GRANULE, GRANULE)
    file = PageFile.open(path, 64 * GRANULE, GRANULE, 64 * GRANULE)
    for idx in range(num_pages):
        frame = idx * FRAME // GRANULE
        host.write_page(frame, bytes([idx + 1]) * PAYLOAD, f"page {idx:011}".encode(), 4, 1)
        with host.frame(frame, FRAME) as view:
            file.write(frame, view)
    file.close()
    host.close()
    return path


def test_every_page_is_read_and_one_that_does_not_hold_is_named(tmp_path: Path) -> None:
    path = page_file(tmp_path / "pages", 5)
    assert granule_of(path) == GRANULE
    whole = check_page_file(path)
    assert (whole.num_checked, whole.bytes_read, whole.problems) == (5, 5 * FRAME, ())

    content = bytearray(path.read_bytes())
    content[SUPERBLOCK_BYTES + 2 * FRAME + 600] ^= 1
    path.write_bytes(content)
    damaged = check_page_file(path)

    assert damaged.num_checked == 5
    assert damaged.problems == (f"pages, frame {2 * FRAME // GRANULE}: its checksum does not hold; it will be computed again.",)
    assert path.read_bytes() == content


def test_a_file_that_is_no_page_file_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(b"something else")
    assert granule_of(path) is None
    assert "no page file" in check_page_file(path).problems[0]
