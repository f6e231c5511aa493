from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.errors import HostPageCorrupt, HostTierInvalid
from drivers.hostmem import MAX_RUNS, HostMemory, host_frame_bytes
from drivers.page_header import HEADER_BYTES

GRANULE = 256
SIZE = 64 * GRANULE
KEY = b"0123456789abcdef"
PAYLOAD = bytes(range(200)) + b"tail"
SPACE = 7


@pytest.fixture
def tier() -> Iterator[HostMemory]:
    memory = HostMemory.create(SIZE, GRANULE)
    yield memory
    memory.close()


def reads_back(memory: HostMemory, frame: int, payload: bytes, key: bytes = KEY) -> bool:
    target = bytearray(len(payload))
    memory.read_page(frame, target, key, SPACE)
    return bytes(target) == payload


def test_a_page_reads_back_in_another_mapping_of_the_same_memory(tier: HostMemory) -> None:
    tier.boot_generation = 5
    tier.write_page(3, PAYLOAD, KEY, 16, SPACE)

    other = HostMemory(os.dup(tier.fd), SIZE, GRANULE)
    header = other.peek(3)

    assert reads_back(other, 3, PAYLOAD)
    assert header is not None
    assert (header.key, header.space_id, header.num_tokens, header.payload_bytes, header.boot_generation) == (KEY, SPACE, 16, 204, 5)
    other.close()


def test_a_host_frame_is_whole_granules_with_room_for_the_header() -> None:
    assert host_frame_bytes(GRANULE - HEADER_BYTES, GRANULE) == GRANULE
    assert host_frame_bytes(GRANULE - HEADER_BYTES + 1, GRANULE) == 2 * GRANULE


@pytest.mark.parametrize(
    ("key", "space_id", "payload_bytes", "complaint"),
    [
        (b"another page key", SPACE, len(PAYLOAD), "another key"),
        (KEY, SPACE + 1, len(PAYLOAD), "space 7, not 8"),
        (KEY, SPACE, len(PAYLOAD) - 1, "204 bytes, not 203"),
    ],
)
def test_a_page_that_is_not_the_one_asked_for_is_refused(
    tier: HostMemory, key: bytes, space_id: int, payload_bytes: int, complaint: str
) -> None:
    tier.write_page(0, PAYLOAD, KEY, 16, SPACE)
    target = bytearray(payload_bytes)

    with pytest.raises(HostPageCorrupt, match=complaint):
        tier.read_page(0, target, key, space_id)
    assert target == bytes(payload_bytes)  # invariant 2


@settings(max_examples=200)
@given(bit=st.integers(0, 8 * (HEADER_BYTES + len(PAYLOAD)) - 1))
def test_any_flipped_bit_of_header_or_payload_is_found(bit: int) -> None:
    memory = HostMemory.create(SIZE, GRANULE)
    memory.write_page(2, PAYLOAD, KEY, 16, SPACE)
    offset = 2 * GRANULE + bit // 8
    os.pwrite(memory.fd, bytes([os.pread(memory.fd, 1, offset)[0] ^ (1 << bit % 8)]), offset)
    target = bytearray(len(PAYLOAD))

    with pytest.raises(HostPageCorrupt):
        memory.read_page(2, target, KEY, SPACE)
    assert target == bytes(len(PAYLOAD))  # invariant 2
    memory.close()


@settings(max_examples=60)
@given(written=st.integers(0, len(PAYLOAD)), is_new_header_there=st.booleans())
def test_a_write_torn_before_its_header_never_reads_as_a_page(written: int, is_new_header_there: bool) -> None:
    """Invariant 1: the states that a death leaves behind are a broken header over any part of the payload, or a part of the header."""
    memory = HostMemory.create(SIZE, GRANULE)
    memory.write_page(1, b"old" * 68, KEY, 16, SPACE)
    whole = HostMemory.create(SIZE, GRANULE)
    whole.write_page(1, PAYLOAD, KEY, 16, SPACE)
    header = os.pread(whole.fd, HEADER_BYTES, GRANULE)
    num_header_bytes = written % HEADER_BYTES if is_new_header_there else 0
    num_payload_bytes = len(PAYLOAD) if is_new_header_there else written
    os.pwrite(memory.fd, header[:num_header_bytes] + bytes(HEADER_BYTES - num_header_bytes), GRANULE)
    os.pwrite(memory.fd, PAYLOAD[:num_payload_bytes], GRANULE + HEADER_BYTES)

    assert memory.peek(1) is None
    assert list(memory.scan()) == []
    memory.close()
    whole.close()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 900)), max_size=25))
def test_scan_finds_exactly_the_pages_that_still_hold(writes: list[tuple[int, int]]) -> None:
    memory = HostMemory.create(SIZE, GRANULE)
    live: dict[int, int] = {}
    for frame, payload_bytes in writes:
        num_granules = host_frame_bytes(payload_bytes, GRANULE) // GRANULE
        if (frame + num_granules) * GRANULE > SIZE:
            continue
        memory.write_page(frame, bytes([payload_bytes % 251 + 1]) * payload_bytes, KEY, 1, SPACE)
        overwritten = [other for other, size in live.items() if other < frame + num_granules and frame < other + size]
        for other in overwritten:
            del live[other]
        live[frame] = num_granules

    assert [frame for frame, _ in memory.scan()] == sorted(live)
    memory.close()


def test_a_frame_whose_page_could_not_be_filled_holds_none(tier: HostMemory) -> None:
    tier.write_page(3, PAYLOAD, KEY, 16, SPACE)

    def fail(_payload: memoryview) -> None:
        raise OSError

    with pytest.raises(OSError):
        tier.fill_page(3, len(PAYLOAD), fail, (KEY, SPACE, 16))
    assert tier.peek(3) is None  # invariant 1


def test_scan_ignores_a_header_that_is_part_of_a_payload(tier: HostMemory) -> None:
    tier.write_page(40, PAYLOAD, KEY, 16, SPACE)
    forged = os.pread(tier.fd, HEADER_BYTES, 40 * GRANULE)
    payload = bytes(GRANULE - HEADER_BYTES) + forged + bytes(GRANULE)
    tier.write_page(4, payload, KEY, 16, SPACE)

    assert [frame for frame, _ in tier.scan()] == [4, 40]  # invariant 3


def test_scan_ignores_a_page_that_a_later_one_has_partly_overwritten(tier: HostMemory) -> None:
    tier.write_page(4, bytes(3 * GRANULE), KEY, 16, SPACE)
    tier.write_page(6, PAYLOAD, KEY, 16, SPACE)

    assert [frame for frame, _ in tier.scan()] == [6]


def test_a_zeroed_frame_holds_nothing(tier: HostMemory) -> None:
    tier.write_page(9, PAYLOAD, KEY, 16, SPACE)
    tier.zero(9, host_frame_bytes(len(PAYLOAD), GRANULE))

    assert tier.peek(9) is None
    assert not any(os.pread(tier.fd, SIZE, 0))


def test_a_relabelled_page_belongs_to_the_new_space_and_generation(tier: HostMemory) -> None:
    tier.write_page(9, PAYLOAD, KEY, 16, SPACE - 1)
    tier.boot_generation = 2
    tier.relabel(9, SPACE)

    header = tier.peek(9)
    assert reads_back(tier, 9, PAYLOAD)
    assert header is not None
    assert header.boot_generation == 2


def test_a_payload_view_is_read_only_and_checked(tier: HostMemory) -> None:
    tier.write_page(9, PAYLOAD, KEY, 16, SPACE)
    with tier.payload(9) as payload:
        assert bytes(payload) == PAYLOAD
        assert payload.readonly
    with pytest.raises(HostPageCorrupt):
        tier.payload(10)


@pytest.mark.parametrize("frame", [-1, 64, 63])
def test_a_frame_outside_the_tier_is_refused_and_nothing_is_written(tier: HostMemory, frame: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        tier.write_page(frame, PAYLOAD, KEY, 16, SPACE)
    assert not any(os.pread(tier.fd, SIZE, 0))


def test_a_key_of_another_length_is_refused_and_nothing_is_written(tier: HostMemory) -> None:
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        tier.write_page(0, PAYLOAD, b"key", 16, SPACE)
    assert not any(os.pread(tier.fd, SIZE, 0))


def test_the_size_of_the_memory_is_sealed(tier: HostMemory) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(tier.fd, 0)  # invariant 4


@pytest.mark.parametrize(("size_bytes", "granule_bytes"), [(SIZE, 2 * GRANULE), (SIZE - GRANULE, GRANULE), (SIZE + GRANULE, GRANULE)])
def test_a_descriptor_of_another_shape_is_refused_and_stays_open(tier: HostMemory, size_bytes: int, granule_bytes: int) -> None:
    with pytest.raises(HostTierInvalid):
        HostMemory(tier.fd, size_bytes, granule_bytes)
    os.fstat(tier.fd)


def test_a_file_that_is_no_tier_is_refused(tmp_path: os.PathLike[str]) -> None:
    fd = os.open(os.path.join(tmp_path, "file"), os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, SIZE + 4096)
    with pytest.raises(HostTierInvalid):
        HostMemory(fd, SIZE, GRANULE)
    os.close(fd)


@pytest.mark.parametrize(("size_bytes", "granule_bytes"), [(0, 256), (1000, 256), (1024, 100), (1024, 0)])
def test_a_tier_is_whole_granules_of_whole_headers(size_bytes: int, granule_bytes: int) -> None:
    with pytest.raises(ValueError, match="whole granules"):
        HostMemory.create(size_bytes, granule_bytes)


def test_close_is_safe_twice() -> None:
    memory = HostMemory.create(SIZE, GRANULE)
    memory.close()
    memory.close()


def test_scan_takes_no_weights_for_pages(tier: HostMemory) -> None:
    """Weights may be any bytes, also those of a page; marks outlive the front that made them, and its successor's own marks."""
    for frame in (0, 4, 8):
        tier.write_page(frame, b"p" * 100, bytes([frame]) * 16, 16, 7)
    tier.mark_weights([(4, 4)])
    assert [frame for frame, _header in tier.scan()] == [0, 8]
    successor = HostMemory(os.dup(tier.fd), tier.size_bytes, tier.granule_bytes)
    successor.mark_weights([(8, 4)])
    assert [frame for frame, _header in successor.scan()] == [0]
    successor.close()


def test_bytes_of_weights_lie_in_the_tier(tier: HostMemory) -> None:
    tier.span(1024, 3)[:] = b"abc"
    assert os.pread(tier.fd, 3, 1024) == b"abc"
    for start in (-1, tier.size_bytes - 2):
        with pytest.raises(ValueError, match="lie outside"):
            tier.span(start, 3)


def test_more_runs_of_weights_than_the_trailer_holds_are_marked_as_fewer_and_longer_ones(tier: HostMemory) -> None:
    runs = [(2 * idx, 1) for idx in range(MAX_RUNS + 3)]
    tier.mark_weights(runs)
    told = struct.iter_unpack("<II", os.pread(tier.fd, MAX_RUNS * 8, tier.size_bytes + 36))

    assert list(told) == [*runs[: MAX_RUNS - 1], (2 * (MAX_RUNS - 1), 7)]
