"""What the index knows, and what a table takes from it; that no byte is wrong is in test_pager_content.py."""

from __future__ import annotations

import pytest

from memory.config import MemoryConfig
from memory.errors import PagingError
from memory.page import Space, Tier
from memory.pager import Pager, Want
from memory.prefix import HashChain
from memory.table import PageTable

PT = 4
SLAB = 64
PAGE_BYTES = 16


class Rig:
    """A pager whose plans are committed as they come, and the links of what contexts say."""

    def __init__(self, device_slabs: int = 4, host_slabs: int = 4, groups: tuple[int, ...] = (1,)) -> None:
        self.pager = Pager(MemoryConfig(device_slabs * SLAB, host_slabs * SLAB, 0, PT, SLAB, 16, write_behind=False))
        self.groups = groups
        for space_id in groups:
            self.pager.open_space(Space(space_id, PT, PAGE_BYTES, 2 * PAGE_BYTES))
        self.index = self.pager._mapping.index
        self.seq = 0

    def table(self, owner: str = "lab/ann") -> PageTable:
        return self.pager.new_table(owner, self.groups)

    def run(self, table: PageTable, valid: int, target: int) -> None:
        self.seq += 1
        self.pager.plan(self.seq, [Want(table, valid, target)])
        self.pager.commit(self.seq)
        self.check()

    def check(self) -> None:
        self.pager.check_integrity()

    def computed(self, num_tokens: int, owner: str = "lab/ann", domain: bytes = b"d") -> PageTable:
        table = self.table(owner)
        self.run(table, 0, num_tokens)
        self.pager.fill(table, num_tokens, links(num_tokens, domain))
        return table

    def share(self, table: PageTable, num_tokens: int, num_valid: int = 0, domain: bytes = b"d") -> int:
        won = self.pager.sharing.share(table, num_valid, links(num_tokens, domain))
        self.check()
        return won

    def kv(self, owner: str) -> int:
        return self.pager.ledger.used(owner, Tier.DEVICE)


def links(num_tokens: int, domain: bytes = b"d") -> list[bytes]:
    chain = HashChain(domain, PT)
    chain.extend(range(num_tokens))
    return chain.keys


def test_an_empty_table_takes_the_full_pages_that_somebody_computed() -> None:
    rig = Rig()
    first = rig.computed(14)
    second = rig.table()

    assert rig.share(second, 14) == 12
    assert second.pages[0] == first.pages[0][:3]
    assert (second.counts().shared, second.intact_tokens()) == (3, 12)


def test_a_shared_page_is_charged_in_equal_parts() -> None:
    rig = Rig()
    rig.computed(3 * PT, "lab/ann")

    rig.share(rig.table("lab/bob"), 3 * PT)

    assert (rig.kv("lab/ann"), rig.kv("lab/bob")) == (3 * PAGE_BYTES // 2, 3 * PAGE_BYTES // 2)


def test_another_domain_finds_nothing() -> None:
    rig = Rig()
    rig.computed(12, domain=b"ann")

    assert rig.share(rig.table(), 12, domain=b"bob") == 0


def test_only_the_leading_pages_that_are_alike_are_taken() -> None:
    rig = Rig()
    rig.computed(16)
    other = HashChain(b"d", PT)
    other.extend([*range(8), *range(100, 108)])

    assert rig.pager.sharing.share(rig.table(), 0, other.keys) == 8


def test_lost_pages_are_taken_from_others() -> None:
    rig = Rig()
    first = rig.computed(12)
    second = rig.computed(12)
    for page in second.pages[0][1:]:
        rig.pager._flights.free_page(page)
    assert second.intact_tokens() == 4

    assert rig.share(second, 12, num_valid=12) == 12
    assert second.pages[0][1:] == first.pages[0][1:]


def test_pages_that_are_not_valid_are_replaced() -> None:
    rig = Rig()
    first = rig.computed(12)
    second = rig.table()
    rig.run(second, 0, 16)  # a row that left before its steps came

    assert rig.share(second, 12, num_valid=2) == 12
    assert second.pages[0][:3] == first.pages[0]
    assert rig.kv("lab/ann") == 4 * PAGE_BYTES


def test_a_page_on_its_way_to_be_written_is_known_to_nobody() -> None:
    rig = Rig()
    first = rig.computed(12)
    rig.seq += 1
    rig.pager.plan(rig.seq, [Want(first, 8, 12)])

    assert rig.share(rig.table(), 12) == 8


def test_writing_behind_a_shared_page_leaves_the_others_alone() -> None:
    rig = Rig()
    first = rig.computed(8)
    second = rig.table()
    rig.share(second, 8)

    rig.run(second, 7, 9)

    assert first.pages[0][1] is not second.pages[0][1]
    assert rig.share(rig.table(), 8) == 8


def test_a_truncated_page_is_known_no_more_unless_somebody_has_it_whole() -> None:
    rig = Rig()
    first = rig.computed(12)
    second = rig.table()
    rig.share(second, 12)

    rig.pager.truncate(first, 10)
    rig.check()
    kept = rig.share(rig.table(), 12)
    rig.pager.truncate(second, 10)

    assert (kept, len(rig.index)) == (12, 3)
    for table in list(rig.pager._tables)[2:]:
        rig.pager.drop(table)
    assert rig.share(rig.table(), 12) == 8


def test_a_link_outlives_the_first_of_two_that_computed_it() -> None:
    rig = Rig()
    first, second = rig.computed(8), rig.computed(8)

    rig.pager.drop(first)
    kept = rig.share(rig.table(), 8)
    rig.pager.drop(second)

    assert kept == 8


def test_pages_in_the_host_tier_are_taken_too() -> None:
    rig = Rig(device_slabs=1)
    rig.computed(16)
    rig.computed(16, domain=b"other")  # has the first one's pages demoted
    third = rig.table()

    assert rig.share(third, 16) == 16
    assert third.counts().device == 0
    rig.run(third, 16, 16)
    assert third.counts().device == 4


def test_lost_pages_leave_the_index_and_an_abort_brings_them_back() -> None:
    rig = Rig(device_slabs=1, host_slabs=0)
    rig.computed(16)
    rig.seq += 1
    rig.pager.plan(rig.seq, [Want(rig.table(), 0, 8)])
    while_on_way = len(rig.index)

    rig.pager.abort(rig.seq)
    rig.check()

    assert (while_on_way, len(rig.index)) == (2, 4)


def test_a_place_is_taken_in_every_group_or_in_none() -> None:
    rig = Rig(groups=(1, 2))
    first = rig.computed(8)
    rig.pager._flights.free_page(first.pages[1][1])

    second = rig.table()

    assert rig.share(second, 8) == 4
    assert [len(pages) for pages in second.pages] == [1, 1]


def test_nothing_is_known_of_a_device_that_is_gone() -> None:
    rig = Rig()
    rig.computed(12)

    rig.pager.lose_device()

    assert rig.share(rig.table(), 12) == 0


def test_nothing_is_known_of_a_space_that_is_closed() -> None:
    rig = Rig()
    table = rig.computed(12)

    rig.pager.close_space(1)

    assert len(rig.index) == 0
    rig.pager.drop(table)


def test_the_cut_page_of_its_only_holder_is_known_no_more() -> None:
    rig = Rig()
    first = rig.computed(12)

    rig.pager.truncate(first, 10)
    rig.check()

    assert rig.share(rig.table(), 12) == 8


def claimed(rig: Rig, num_tokens: int) -> PageTable:
    """A table that adopted its pages from the host tier; the last may be partial."""
    table = rig.table()
    for idx in range(-(-num_tokens // PT)):
        for group, _space_id in enumerate(rig.groups):
            key = bytes([idx + 1]) * 16
            frame = 2 * PAGE_BYTES // 16 * (idx + 4 * group)
            rig.pager.claim_host(table, group, idx, frame, key, min(PT, num_tokens - idx * PT))
    return table


def test_a_table_joins_another_place_by_place_in_every_group_up_to_a_partial_page() -> None:
    rig = Rig(groups=(1, 2))
    first, second = claimed(rig, PT + 2), rig.table("lab/bob")

    for idx in range(2):
        rig.pager.sharing.join(second, first, idx)
        rig.check()

    assert second.pages == first.pages
    assert (second.reach, second.counts().shared) == (PT + 2, 4)
    rig.run(second, PT + 2, PT + 3)  # writes: the partial pages become its own
    assert (second.counts().shared, first.counts().host_only) == (2, 2)


def test_a_place_that_is_not_the_next_or_not_there_is_not_joined() -> None:
    rig = Rig()
    first, second = claimed(rig, 2 * PT), rig.table()

    for idx in (1, 2):
        with pytest.raises(PagingError, match="not to be had"):
            rig.pager.sharing.join(second, first, idx)
    rig.pager.sharing.join(second, first, 0)
    with pytest.raises(PagingError, match="not to be had"):
        rig.pager.sharing.join(second, first, 0)

    rig.check()
    assert second.pages == [first.pages[0][:1]]
