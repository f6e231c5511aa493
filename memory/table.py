"""The page table of a context: for every KV group, the pages of its tokens in order.

A page may be held by several tables (fork), always at the same place in each. It is on any of *device*, *host* and *disk*; the copies on
host and disk are *below* and stay when the page is promoted. A page that is on disk alone is *far*: it has to be fetched before a plan can
promote it. One that is nowhere is *lost*, and its tokens must be computed again.

    page              0    1    2    3    4    5    6
    device frame      8   12   16    -    -    -    -
    host frame        4    -    6    7    -    -    -
    disk frame        4    -    -    -    9    -    -
                    |-- resident --|    far    |-- lost
                    |--- at hand -------|
                    |------- intact -------|

Pages and tables are changed by `memory.mapping` alone, which keeps their counters; everybody may read them.

Invariants
1. Every table in `page.holders` has the page in group `page.group` at `page.idx`, once, and no other table has it.
2. The first `resident[group]` pages of a group are on the device.
3. `num_device`, `num_host`, `num_disk`, `num_copied`, `num_saved`, `num_lost`, `num_shared` count the group's pages that are on the
   device, on the host, on disk alone, on the device and below, on host and disk, nowhere, and held by more than this table.
4. Every copy below holds the first `page.num_tokens` tokens of the page under `page.key`; without one `page.num_tokens` is 0.
   Tokens at or past `reach` of every holder are in nobody's interest, and may be anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from memory.page import Space, Tier


class TableCounts(NamedTuple):
    """Where the pages of a table are."""

    device: int
    host_only: int
    lost: int
    shared: int
    disk_only: int


@dataclass(frozen=True, slots=True)
class HostPage:
    """A page of a table in the host tier."""

    group: int
    page_idx: int
    frame: int
    key: bytes
    num_tokens: int


class Page:
    """KV of `page_tokens` consecutive tokens, for one group."""

    __slots__ = (
        "device_frame",
        "disk_frame",
        "group",
        "holders",
        "host_frame",
        "idx",
        "key",
        "num_tokens",
        "owners",
        "pins",
        "readers",
        "space_id",
    )

    def __init__(self, space_id: int, group: int, idx: int) -> None:
        self.space_id = space_id
        self.group = group
        self.idx = idx
        self.device_frame: int | None = None
        self.host_frame: int | None = None
        self.disk_frame: int | None = None
        self.holders: list[PageTable] = []  # oldest first
        self.owners: dict[str, int] = {}  # how many of the holders each owner has
        self.key = b""  # 16 bytes that name the content, or empty: unknown
        self.num_tokens = 0  # valid in the copies below
        self.pins = 0  # moves of outstanding plans that name it
        self.readers = 0  # holds of the front on its host copy: `Pager.hold_host`, and transfers to disk

    def set_frame(self, tier: Tier, frame: int | None) -> None:
        """Put it into a frame of a tier, or out of the one it is in (None)."""
        if tier is Tier.DEVICE:
            self.device_frame = frame
        elif tier is Tier.HOST:
            self.host_frame = frame
        else:
            self.disk_frame = frame
        if not self.is_below:
            self.num_tokens = 0

    @property
    def is_parked(self) -> bool:
        """Whether it is only a host copy that is kept until its readers are done."""
        return self.idx < 0

    @property
    def space(self) -> Space:
        """Its space, as long as anybody holds it."""
        return self.holders[0].spaces[self.group]

    @property
    def is_lost(self) -> bool:
        """Whether its content is nowhere."""
        return self.device_frame is None and self.host_frame is None and self.disk_frame is None

    @property
    def is_far(self) -> bool:
        """Whether its content is on disk alone."""
        return self.disk_frame is not None and self.host_frame is None and self.device_frame is None

    @property
    def is_copied(self) -> bool:
        """Whether it is on the device, and below too."""
        return self.device_frame is not None and self.is_below

    @property
    def is_saved(self) -> bool:
        """Whether it is on the host and on disk: the copy on the host may go at no cost."""
        return self.disk_frame is not None and self.host_frame is not None

    @property
    def is_below(self) -> bool:
        """Whether the host or the disk tier has a copy of it."""
        return self.host_frame is not None or self.disk_frame is not None

    @property
    def is_pinned(self) -> bool:
        """Whether it belongs to a pinned prefix of one of its holders."""
        return any(self.idx < table.num_pinned for table in self.holders)

    @property
    def num_reached(self) -> int:
        """Tokens of the page that may be valid for one holder or another."""
        page_tokens = self.holders[0].page_tokens if self.holders else 0
        start = self.idx * page_tokens
        return max(min(max((table.reach - start for table in self.holders), default=0), page_tokens), 0)

    @property
    def is_clean(self) -> bool:
        """Whether a copy below holds everything that anybody may need of it."""
        return self.is_below and self.num_tokens >= self.num_reached


class PageTable:
    """Logical pages of one context, per KV group."""

    __slots__ = (
        "holds",
        "is_awaited",
        "is_buried",
        "is_cache",
        "is_dropped",
        "is_suspended",
        "label",
        "num_copied",
        "num_device",
        "num_disk",
        "num_filled",
        "num_host",
        "num_lost",
        "num_pinned",
        "num_relocated",
        "num_saved",
        "num_shared",
        "owner",
        "page_tokens",
        "pages",
        "pins",
        "reach",
        "resident",
        "space_ids",
        "spaces",
    )

    def __init__(self, owner: str, spaces: tuple[Space, ...]) -> None:
        num_groups = len(spaces)
        self.owner = owner
        self.label = ""  # whose it is, as decisions about it are to say
        self.spaces = spaces
        self.space_ids = tuple(space.space_id for space in spaces)  # asked for often
        self.page_tokens = spaces[0].page_tokens
        self.pages: list[list[Page]] = [[] for _ in spaces]
        self.reach = 0  # tokens from here on are not valid, even when all outstanding plans are done
        self.num_filled = 0  # full pages that were named by `Pager.fill`
        self.resident = [0] * num_groups
        self.num_device = [0] * num_groups
        self.num_host = [0] * num_groups
        self.num_disk = [0] * num_groups  # on disk alone
        self.num_copied = [0] * num_groups  # on the device and below
        self.num_saved = [0] * num_groups  # on the host and on disk
        self.num_lost = [0] * num_groups
        self.num_shared = [0] * num_groups
        self.num_relocated = 0  # how often a page of it moved to another frame of the device
        self.holds: list[dict[Page, None]] = []  # pages whose host copies somebody reads
        self.pins = 0  # outstanding plans that want it
        self.num_pinned = 0  # leading pages that go last of its owner's
        self.is_cache = False  # its context has ended: it is kept as long as nobody needs the room
        self.is_suspended = False
        self.is_buried = False  # it is to leave device and host
        self.is_awaited = False  # its pages were fetched, and wait for the plan that wants them
        self.is_dropped = False

    @property
    def num_pages(self) -> int:
        """Pages that every group has; they differ only while an image is being restored."""
        return min(map(len, self.pages))

    @property
    def device_bytes(self) -> int:
        """Bytes of the device frames that it maps, shared ones in full."""
        return sum(count * space.device_frame_bytes for count, space in zip(self.num_device, self.spaces, strict=True))

    def frames(self, group: int, first_page: int = 0) -> list[int]:
        """Device frames of a group's pages from `first_page` on, as far as they are on the device without a gap."""
        frames: list[int] = []
        for page in self.pages[group][first_page:]:
            if page.device_frame is None:
                break
            frames.append(page.device_frame)
        return frames

    def intact_tokens(self) -> int:
        """Leading tokens whose pages are somewhere, be it on disk, in every group."""
        return min(self._leading_pages(group, may_be_far=True) for group in range(len(self.pages))) * self.page_tokens

    def at_hand_tokens(self) -> int:
        """Leading tokens whose pages are on the device or on the host in every group: those that a plan can bring to the device."""
        return min(self._leading_pages(group, may_be_far=False) for group in range(len(self.pages))) * self.page_tokens

    def counts(self) -> TableCounts:
        """Where its pages are, all groups together."""
        device, lost = sum(self.num_device), sum(self.num_lost)
        disk_only = sum(self.num_disk)
        host_only = sum(map(len, self.pages)) - device - disk_only - lost
        return TableCounts(device, host_only, lost, sum(self.num_shared), disk_only)

    def _leading_pages(self, group: int, *, may_be_far: bool) -> int:
        pages = self.pages[group]
        if not self.num_lost[group] and (may_be_far or not self.num_disk[group]):
            return len(pages)
        rest = range(self.resident[group], len(pages))
        return next((idx for idx in rest if pages[idx].is_lost or (pages[idx].is_far and not may_be_far)), len(pages))
