"""Weights beside pages, in the device and the host tier."""

from __future__ import annotations

import pytest

from memory.config import MemoryConfig
from memory.errors import OutOfFrames
from memory.ledger import Kind
from memory.page import Space, Tier
from memory.pager import Pager, Want

GRANULE, SLAB, PAGE_TOKENS = 16, 128, 4
SPACE = Space(1, PAGE_TOKENS, 32, 64)


def pager_of(device: int = 4, host: int = 4) -> Pager:
    """A pager of so many slabs: four device frames or two host frames each."""
    pager = Pager(
        MemoryConfig(
            device_bytes=device * SLAB,
            host_bytes=host * SLAB,
            page_tokens=PAGE_TOKENS,
            slab_bytes=SLAB,
            granule_bytes=GRANULE,
            max_copies=64,
        )
    )
    pager.open_space(SPACE)
    return pager


def keys(owner: str, count: int) -> list[bytes]:
    return [f"{owner:12}{idx:4}".encode() for idx in range(count)]


def fill(pager: Pager, owner: str, num_pages: int, seq: int) -> None:
    """A context with full pages that were copied to the host tier."""
    table = pager.new_table(owner, (1,))
    pager.plan(seq, [Want(table, 0, num_pages * PAGE_TOKENS)])
    pager.commit(seq)
    pager.fill(table, num_pages * PAGE_TOKENS, keys(owner, num_pages))
    while pager.has_backlog():
        seq += 1
        pager.plan(seq, [])
        pager.commit(seq)


def test_an_image_takes_slabs_of_the_host_tier_and_gives_them_back() -> None:
    pager = pager_of()
    shelf = pager.weights[Tier.HOST]
    assert shelf.place("m", "models", (100, 60)) == (2 * SLAB, 2 * SLAB + 112)
    assert shelf.runs() == [(2 * SLAB // GRANULE, 2 * SLAB // GRANULE)]
    assert pager.ledger.kind_bytes(Tier.HOST, Kind.WEIGHTS) == 2 * SLAB
    assert pager.ledger.kind_bytes(Tier.DEVICE, Kind.WEIGHTS) == 0
    pager.check_integrity()
    shelf.release("m")
    assert (shelf.runs(), shelf.num_free) == ([], 4)
    pager.check_integrity()


def test_runs_that_touch_are_one() -> None:
    shelf = pager_of().weights[Tier.HOST]
    for name in ("a", "b", "c"):
        shelf.place(name, "models", (SLAB,))
    shelf.release("b")
    granules = SLAB // GRANULE
    assert shelf.runs() == [(granules, granules), (3 * granules, granules)]


def test_only_second_copies_leave_the_host_tier_for_weights() -> None:
    pager = pager_of(device=4, host=4)
    fill(pager, "ann", 8, seq=1)
    assert pager.weights[Tier.HOST].num_free == 0
    pager.plan_room(50, (2 * SLAB,), Tier.HOST)
    pager.commit(50)
    pager.weights[Tier.HOST].place("m", "models", (2 * SLAB,))
    pager.check_integrity()
    pager.plan_room(51, (4 * SLAB,), Tier.DEVICE)  # pages leave the device: what is left on the host is their only copy
    pager.commit(51)
    pager.weights[Tier.DEVICE].place("m", "models", (4 * SLAB,))
    with pytest.raises(OutOfFrames, match="host"):
        pager.plan_room(52, (2 * SLAB,), Tier.HOST)
    pager.check_integrity()


def test_whether_weights_would_fit_without_others_is_known_beforehand() -> None:
    pager = pager_of(device=4)
    for name in ("a", "b"):
        pager.weights[Tier.DEVICE].place(name, "models", (2 * SLAB,))
    before = pager.ledger.snapshot()
    assert not pager.could_place((2 * SLAB,), ())
    assert pager.could_place((2 * SLAB,), ("a",))
    assert not pager.could_place((3 * SLAB,), ("a",))
    assert pager.could_place((3 * SLAB,), ("a", "b"))
    assert pager.ledger.snapshot() == before
    assert pager.weights[Tier.DEVICE].held_bytes(("a",)) == 2 * SLAB


def test_a_lost_device_leaves_images_where_they_are() -> None:
    pager = pager_of()
    pager.weights[Tier.DEVICE].place("m", "models", (SLAB,))
    pager.weights[Tier.HOST].place("m", "models", (SLAB,))
    pager.lose_device()
    assert (pager.weights[Tier.DEVICE].num_slabs, pager.weights[Tier.HOST].num_slabs) == (0, 1)
    pager.check_integrity()


def test_what_a_model_has_beyond_the_arena_is_its_owners_and_takes_no_room_of_the_tier() -> None:
    pager = pager_of()
    shelf, ledger = pager.weights[Tier.DEVICE], pager.ledger
    shelf.place("m", "models", (SLAB,))
    free = [each.free_bytes for each in ledger.snapshot()]

    shelf.note_workspace("m", 1000)
    shelf.note_workspace("m", 700)
    shelf.note_workspace("gone", 5)

    assert (ledger.kind_bytes(Tier.DEVICE, Kind.WORKSPACE), shelf.workspace_bytes) == (700, 700)
    assert ledger.used("models", Tier.DEVICE) == SLAB + 700
    assert [each.free_bytes for each in ledger.snapshot()] == free
    assert [(each.owner, each.size_bytes) for each in ledger.holders(Tier.DEVICE)] == [("models", SLAB)]
    pager.check_integrity()
    shelf.release("m")
    assert ledger.used("models", Tier.DEVICE) == 0
    pager.check_integrity()


def test_a_lost_device_takes_what_models_had_beyond_the_arena_along() -> None:
    pager = pager_of()
    pager.weights[Tier.DEVICE].place("m", "models", (SLAB,))
    pager.weights[Tier.DEVICE].note_workspace("m", 700)

    pager.lose_device()

    assert pager.ledger.used("models", Tier.DEVICE) == 0
    pager.check_integrity()
