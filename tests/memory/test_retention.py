"""What is kept of contexts that ended, and that it gives way to everybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from memory.config import MemoryConfig
from memory.page import PagePlan, Space, Tier
from memory.pager import Pager, Want
from memory.prefix import HashChain
from memory.table import Page, PageTable

PT = 4
SLAB = 64  # four device frames
PAGE_BYTES = 16


class Rig:
    """A pager with a cache of some pages."""

    def __init__(self, cached_pages: int, device_slabs: int = 4, host_slabs: int = 4) -> None:
        config = MemoryConfig(
            device_slabs * SLAB, host_slabs * SLAB, 0, PT, SLAB, 16, write_behind=False, prefix_cache_bytes=cached_pages * PAGE_BYTES
        )
        self.pager = Pager(config)
        self.pager.open_space(Space(1, PT, PAGE_BYTES, 2 * PAGE_BYTES))
        self.seq = 0

    def run(self, table: PageTable, target: int, valid: int = 0) -> PagePlan:
        self.seq += 1
        plan = self.pager.plan(self.seq, [Want(table, valid, target)])
        self.pager.commit(self.seq)
        self.pager.check_integrity()
        return plan

    def computed(self, num_tokens: int, text: bytes, owner: str = "lab/ann") -> PageTable:
        table = self.pager.new_table(owner, (1,))
        self.run(table, num_tokens)
        self.pager.fill(table, num_tokens, links(num_tokens, text))
        return table

    def end(self, table: PageTable) -> None:
        self.pager.sharing.retain(table)
        self.pager.check_integrity()

    def found(self, num_tokens: int, text: bytes) -> int:
        return self.pager.sharing.share(self.pager.new_table("lab/ann", (1,)), 0, links(num_tokens, text))

    def cached(self) -> int:
        return sum(self.pager.sharing.cached_bytes(Tier.DEVICE).values()) // PAGE_BYTES


def links(num_tokens: int, text: bytes) -> list[bytes]:
    chain = HashChain(text, PT)
    chain.extend(range(num_tokens))
    return chain.keys


def test_full_pages_of_an_ended_context_are_found_by_the_next() -> None:
    rig = Rig(cached_pages=8)
    rig.end(rig.computed(14, b"a"))

    assert rig.cached() == 3
    assert rig.found(14, b"a") == 12
    assert rig.cached() == 0, "they are the new context's now"


def test_without_a_bound_nothing_is_kept() -> None:
    rig = Rig(cached_pages=0)

    rig.end(rig.computed(16, b"a"))

    assert (rig.found(16, b"a"), rig.pager.ledger.used("lab/ann", Tier.DEVICE)) == (0, 0)


def test_the_coldest_leave_when_the_bound_is_passed() -> None:
    rig = Rig(cached_pages=8)
    for text in (b"a", b"b"):
        rig.end(rig.computed(16, text))
    warm = rig.pager.new_table("lab/ann", (1,))
    rig.pager.sharing.share(warm, 0, links(16, b"a"))
    rig.pager.drop(warm)

    rig.end(rig.computed(16, b"c"))

    assert [rig.found(16, text) for text in (b"a", b"b", b"c")] == [16, 0, 16]


def test_of_a_context_that_is_larger_than_the_bound_its_beginning_is_kept() -> None:
    rig = Rig(cached_pages=3)

    rig.end(rig.computed(16, b"a"))

    assert rig.cached() == 3
    assert rig.found(16, b"a") == 12


def test_cached_pages_give_way_before_those_of_any_context_and_are_not_copied() -> None:
    rig = Rig(cached_pages=8)
    idle = rig.computed(32, b"idle")
    rig.end(rig.computed(32, b"a", "lab/bob"))

    plan = rig.run(rig.pager.new_table("lab/ann", (1,)), 20)

    assert not plan.moves
    assert idle.counts().device == 8
    assert rig.found(32, b"a") == 12


def test_the_host_frames_of_the_cache_give_way_too() -> None:
    rig = Rig(cached_pages=8, device_slabs=2, host_slabs=2)
    kept = rig.computed(16, b"a")
    rig.run(rig.pager.new_table("lab/bob", (1,)), 32)  # has it demoted
    assert kept.counts().host_only == 4
    rig.end(kept)

    rig.run(rig.pager.new_table("lab/carl", (1,)), 16)  # has the other one demoted, into frames of the cache

    assert rig.found(16, b"a") == 0


def test_a_plan_that_is_taken_back_gives_the_cache_its_pages_again() -> None:
    rig = Rig(cached_pages=8, device_slabs=2)
    rig.end(rig.computed(32, b"a"))
    rig.seq += 1
    rig.pager.plan(rig.seq, [Want(rig.pager.new_table("lab/bob", (1,)), 0, 16)])
    meanwhile = rig.cached()

    rig.pager.abort(rig.seq)
    rig.pager.check_integrity()

    assert (meanwhile, rig.cached(), rig.found(32, b"a")) == (4, 8, 32)


@pytest.mark.parametrize("owner", ["lab/ann", "lab/bob"])
def test_what_is_cached_of_an_owner_goes_with_it(owner: str) -> None:
    rig = Rig(cached_pages=8)
    rig.end(rig.computed(16, b"a"))

    rig.pager.sharing.forget_cache(owner)
    rig.pager.check_integrity()

    assert rig.cached() == (0 if owner == "lab/ann" else 4)


class CountedPages(list[Page]):
    """The pages of a group, and how often one was looked at."""

    num_looks = 0

    def __getitem__(self, idx: Any) -> Any:
        self.num_looks += isinstance(idx, int)
        return super().__getitem__(idx)

    def __reversed__(self) -> Iterator[Page]:
        for page in super().__reversed__():
            self.num_looks += 1
            yield page


def test_pages_of_the_cache_that_others_share_are_passed_once() -> None:
    rig = Rig(cached_pages=1000, device_slabs=20, host_slabs=0)
    base = rig.computed(40 * PT, b"a")
    cached = [rig.pager.fork(base, 40 * PT) for _ in range(8)]
    for idx, table in enumerate(cached):
        rig.run(table, 42 * PT, 40 * PT)
        rig.pager.fill(table, 42 * PT, links(40 * PT, b"a") + [bytes([idx, number]) * 8 for number in range(2)])
        rig.end(table)
    counted = [CountedPages(table.pages[0]) for table in cached]
    for table, pages in zip(cached, counted, strict=True):
        table.pages[0] = pages
    taker = rig.pager.new_table("lab/bob", (1,))
    num_free = 80 - 40 - 16
    rig.run(taker, num_free * PT)
    for pages in counted:
        pages.num_looks = 0  # of the checks

    for num_pages in range(num_free + 1, num_free + 17):  # every page that the cache alone holds
        rig.seq += 1
        rig.pager.plan(rig.seq, [Want(taker, (num_pages - 1) * PT, num_pages * PT)])
        rig.pager.commit(rig.seq)

    assert rig.cached() == 0
    looks = [pages.num_looks for pages in counted]
    assert max(looks) <= 2 * 42, looks
    rig.pager.check_integrity()
