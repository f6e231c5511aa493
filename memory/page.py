"""The nouns of paging: tiers, spaces, pages, moves and plans.

A *page* is the KV of `page_tokens` consecutive tokens of one context, for one KV group of its model. A model with one KV group (most
of them) has one page per 16 tokens; a model whose layers differ in window or shape has one page per group.
A *frame* is the room for one page in one tier. Its index is the number of its first *granule* in the arena of that tier, so frames of
different sizes live in one arena, and only a driver turns an index into an address:

    arena      |--------- slab 0 ---------|--------- slab 1 ---------|   slabs are lent to one space each
    granules   |0|1|2|3|4|5|6|7|8|9|...
    frames     |0    |3    |6    | waste  |                               a space with frames of 3 granules
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

_serials = itertools.count(1)


def serial_key() -> bytes:
    """A key for a page whose content has no name yet: no other page of this process ever gets it."""
    return b"kd-page\0" + next(_serials).to_bytes(8, "little")


class Tier(IntEnum):
    """Where bytes live, fastest first."""

    DEVICE = 0
    HOST = 1
    DISK = 2


@dataclass(frozen=True, slots=True)
class Space:
    """One KV group of one loaded model: pages of one size that live and die together.

    `space_id` is chosen by the front when it loads the model and never used again in its life. Sizes are whole granules of their arena;
    a host frame is larger than a device frame because it starts with a page header.
    """

    space_id: int
    page_tokens: int
    device_frame_bytes: int
    host_frame_bytes: int
    window: int | None = None


class Zero(NamedTuple):
    """Fill one frame with zeros: its owner is about to change."""

    space_id: int
    tier: Tier
    frame: int


class Move(NamedTuple):
    """Copy one page from one frame to another.

    `key` names the content (a link of the owner's hash chain): a copy to the host tier writes it into the page header, a copy from the
    host tier must find it there. `num_tokens` says how many tokens of the page are valid.
    """

    space_id: int
    source_tier: Tier
    source_frame: int
    target_tier: Tier
    target_frame: int
    key: bytes
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """Copy one page between the host tier and the disk tier: `Pager.spill` and `Pager.fetch` give it, `Pager.transferred` settles it.

    What lies in the disk frame is the image of the host frame, header and all: `size_bytes` from granule `disk_frame` of the page file, and
    from granule `host_frame` of the host tier. The header must name `key` and `space_id` and its checksums must hold, on either way: a
    transfer that finds another page, or bytes that do not hold, has failed.
    """

    ticket: int
    space_id: int
    is_fetch: bool  # from disk to host; else from host to disk
    host_frame: int
    disk_frame: int
    size_bytes: int
    key: bytes
    num_tokens: int


class Eviction(NamedTuple):
    """Pages of one owner that leave the device with a plan; `num_dropped` of them are nowhere then."""

    owner: str
    num_pages: int
    num_dropped: int


@dataclass(frozen=True, slots=True)
class PagePlan:
    """What has to happen to pages before the steps of plan `seq` may run: zeros, then moves, then late zeros, each in order.

    Late zeros are for frames that a move of the same plan still reads before they change their owner.
    """

    seq: int
    zeros: tuple[Zero, ...] = ()
    moves: tuple[Move, ...] = ()
    late_zeros: tuple[Zero, ...] = ()
    evictions: tuple[Eviction, ...] = ()  # for the books; they are nothing to be done
