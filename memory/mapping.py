"""Which page is in which frame, and who holds it: the one truth that plans, verbs and eviction change.

Everything here is a single step that keeps pages, tables, pools and ledger in agreement; none of it decides anything, and none of it can be
undone by itself (`memory.draft` records how).

Invariants
1. A used frame belongs to the one page that `page_at` gives for it, and that page names the frame; no other frame belongs to a page.
2. A page that is in a frame has a holder.
3. The ledger's KV bytes of a tier are the frame bytes of the pages in it, shared in integers among their holders; `saved_bytes` are those
   of the host frames whose pages are on disk too.
"""

from __future__ import annotations

from memory.config import MemoryConfig
from memory.counters import count_in_all, count_page
from memory.diskpool import DiskPool
from memory.errors import NeverFits, PagingError, UnknownSpace
from memory.frames import FramePool
from memory.ledger import Ledger
from memory.page import Space, Tier
from memory.parked import ParkedCopies
from memory.prefixindex import PrefixIndex
from memory.retention import Retention
from memory.slabs import Arena
from memory.table import Page, PageTable

TIERS = (Tier.DEVICE, Tier.HOST, Tier.DISK)
WORKER_TIERS = (Tier.DEVICE, Tier.HOST)  # those that plans name; what nobody uses there may still hold somebody's bytes


class Mapping:
    """Pages, frames and holders of all tiers."""

    def __init__(self, config: MemoryConfig) -> None:
        sizes = {Tier.DEVICE: config.device_bytes, Tier.HOST: config.host_bytes, Tier.DISK: config.page_file_bytes}
        self.arenas = {tier: Arena(sizes[tier] // config.slab_bytes, config.slab_bytes, config.granule_bytes) for tier in TIERS}
        has_disk = self.arenas[Tier.DISK].num_slabs > 0
        self.ledger = Ledger({tier: self.arenas[tier].total_bytes for tier in (TIERS if has_disk else WORKER_TIERS)})
        self.num_changes = 0  # of spaces, pages, frames and holders
        self.saved_bytes = 0  # of host copies that are on disk too
        self.spaces: dict[int, Space] = {}
        self.index = PrefixIndex()
        self.retention = Retention(config.prefix_cache_bytes)
        self._pools: dict[Tier, dict[int, FramePool]] = {tier: {} for tier in TIERS}
        self._pages: dict[Tier, dict[int, Page]] = {tier: {} for tier in TIERS}
        self.departed: list[Page] = []  # from the device, since somebody looked and cleared it
        self.parked = ParkedCopies()

    # ------------------------------------------------------------------------------------------------------------------ spaces

    def open_space(self, space: Space) -> None:
        """Make pools for a space. Raises: NeverFits, if its frames are larger than a slab; PagingError, if it is open."""
        if space.space_id in self.spaces:
            raise PagingError(f"Space {space.space_id} is open already.")
        for tier, arena in self.arenas.items():
            if arena.num_slabs and frame_bytes(space, tier) > arena.slab_bytes:
                raise NeverFits(tier.name.lower(), frame_bytes(space, tier), arena.slab_bytes, ())
        self.num_changes += 1
        self.spaces[space.space_id] = space
        for tier, arena in self.arenas.items():
            if arena.num_slabs:
                pool = DiskPool if tier is Tier.DISK else FramePool
                self._pools[tier][space.space_id] = pool(arena, frame_bytes(space, tier))

    def close_space(self, space_id: int) -> None:
        """Forget a space none of whose pages is in a frame; its frames in limbo go back when they retire."""
        self.space(space_id)
        self.num_changes += 1
        del self.spaces[space_id]

    def space(self, space_id: int) -> Space:
        """The open space of that id. Raises: UnknownSpace."""
        space = self.spaces.get(space_id)
        if space is None:
            raise UnknownSpace(f"Space {space_id} is not open.")
        return space

    def pool(self, space_id: int, tier: Tier) -> FramePool:
        """The frames of an open space in a tier. Raises: UnknownSpace, also where the tier is turned off."""
        pool = self._pools[tier].get(space_id)
        if pool is None or space_id not in self.spaces:
            raise UnknownSpace(f"Space {space_id} has no frames in the {tier.name.lower()} tier.")
        return pool

    def disk_pools(self) -> dict[int, DiskPool]:
        """Every pool of the disk tier, by space."""
        return {space_id: pool for space_id, pool in self._pools[Tier.DISK].items() if isinstance(pool, DiskPool)}

    def pools(self, tier: Tier) -> dict[int, FramePool]:
        """Every pool of a tier, by space; closed spaces that still have frames in limbo included."""
        return self._pools[tier]

    def free_bytes(self, tier: Tier) -> int:
        """Bytes that can be had without evicting anything, all spaces together."""
        arena = self.arenas[tier]
        return arena.num_free * arena.slab_bytes + sum(pool.num_free * pool.frame_bytes for pool in self._pools[tier].values())

    def retire(self, seq: int) -> None:
        """Plans up to `seq` have finished."""
        for pools in self._pools.values():
            for space_id, pool in list(pools.items()):
                pool.retire(seq)
                if space_id not in self.spaces and not pool.num_slabs:
                    del pools[space_id]

    def rewind(self, seq: int) -> None:
        """Plans after `seq` were aborted."""
        for pools in self._pools.values():
            for pool in pools.values():
                pool.rewind(seq)

    def spoil(self, tier: Tier, granules: range, residue: frozenset[str]) -> list[Page]:
        """Note that bytes of others were written over granules of one slab; returns the pages whose frames they belong to."""
        arena = self.arenas[tier]
        slab = arena.slab_of(granules.start)
        pool = next((pool for pool in self._pools[tier].values() if slab in pool.slabs()), None)
        if pool is None:
            arena.set_residue(slab, arena.residue(slab) | residue)
            return []
        hit = pool.spoil(granules, residue)
        return [self._pages[tier][frame] for frame in hit if frame in self._pages[tier]]

    def reset_device(self) -> None:
        """The device's memory is new and zero; no page may be in it any more. Raises: PagingError, if one is."""
        if self._pages[Tier.DEVICE]:
            raise PagingError("Pages are still mapped to the device.")
        for pool in self._pools[Tier.DEVICE].values():
            pool.reset()
        self.arenas[Tier.DEVICE].reset()

    # ------------------------------------------------------------------------------------------------------------------ frames of pages

    def page_at(self, tier: Tier, frame: int) -> Page | None:
        """The page in a frame."""
        return self._pages[tier].get(frame)

    def pages(self, tier: Tier) -> dict[int, Page]:
        """Every page of a tier, by frame. Not to be changed."""
        return self._pages[tier]

    def map(self, page: Page, tier: Tier, frame: int) -> None:
        """Put a page into a used frame that belongs to nobody."""
        self.num_changes += 1
        count_in_all(page, -1)
        self._set_frame(page, tier, frame)
        self._pages[tier][frame] = page
        self._charge(page, tier)
        count_in_all(page, 1)

    def unmap(self, page: Page, tier: Tier) -> int:
        """Take a page out of its frame, and return the frame: used, and nobody's."""
        frame = frame_of(page, tier)
        if frame is None:
            raise PagingError(f"The page is not in the {tier.name.lower()} tier.")
        self._refund(page, tier)
        del self._pages[tier][frame]
        if tier is Tier.DEVICE:
            self.departed.append(page)
        self.num_changes += 1
        count_in_all(page, -1)
        self._set_frame(page, tier, None)
        count_in_all(page, 1)
        if tier is Tier.DEVICE:
            for table in page.holders:
                table.resident[page.group] = min(table.resident[page.group], page.idx)
        self.index.note(page)
        return frame

    def _set_frame(self, page: Page, tier: Tier, frame: int | None) -> None:
        was_saved = page.is_saved
        page.set_frame(tier, frame)
        self.saved_bytes += (page.is_saved - was_saved) * self.spaces[page.space_id].host_frame_bytes

    def relocate(self, page: Page, frame: int) -> None:
        """Put a page that is on the device into another used frame there; the one it leaves is nobody's."""
        assert page.device_frame is not None
        del self._pages[Tier.DEVICE][page.device_frame]
        self._pages[Tier.DEVICE][frame] = page
        page.set_frame(Tier.DEVICE, frame)
        self.num_changes += 1
        for table in page.holders:
            table.num_relocated += 1

    # ------------------------------------------------------------------------------------------------------------------ holders

    def attach(self, page: Page, table: PageTable, position: int | None = None) -> None:
        """Make a table a holder of a page, the youngest unless said; the caller puts the page into the table."""
        self.num_changes += 1
        num_before = page.owners.get(table.owner, 0)
        is_recharged = num_before < len(page.holders)  # one more holder of a sole owner changes no charge
        if is_recharged:
            self._recharge(page, -1)
        page.holders.insert(len(page.holders) if position is None else position, table)
        page.owners[table.owner] = num_before + 1
        if is_recharged or not num_before:
            self._recharge(page, 1)
        if is_recharged and not num_before:
            self._spread_residue(page, table.owner)
        count_page(table, page, 1)
        if len(page.holders) == 2:
            page.holders[0].num_shared[page.group] += 1
            page.holders[1].num_shared[page.group] += 1
        elif len(page.holders) > 2:
            table.num_shared[page.group] += 1

    def detach(self, page: Page, table: PageTable) -> int:
        """End a table's hold on a page, and return which holder it was. A page without holders must not be in any frame."""
        position = page.holders.index(table)
        if len(page.holders) == 1 and not page.is_lost:
            raise PagingError("The last holder of a page leaves it in a frame.")  # invariant 2
        self.num_changes += 1
        num_before = page.owners[table.owner]
        is_recharged = num_before < len(page.holders) or num_before == 1
        if is_recharged:
            self._recharge(page, -1)
        del page.holders[position]
        page.owners[table.owner] = num_before - 1
        if num_before == 1:
            del page.owners[table.owner]
        if is_recharged:
            self._recharge(page, 1)
        count_page(table, page, -1)
        if page.holders:
            table.num_shared[page.group] -= 1
            if len(page.holders) == 1:
                page.holders[0].num_shared[page.group] -= 1
        self.index.note(page)
        return position

    def replace(self, table: PageTable, old: Page, new: Page, position: int | None = None) -> int:
        """Put `new` where a table has `old`; returns which holder of `old` the table was."""
        self.attach(new, table, position)
        table.pages[old.group][old.idx] = new
        if new.device_frame is None:
            table.resident[old.group] = min(table.resident[old.group], old.idx)
        return self.detach(old, table)

    # ------------------------------------------------------------------------------------------------------------------ parked copies

    def park(self, page: Page) -> Page:
        """Move a page's host copy, which somebody reads, to a page of its own that lives until `readers` are done."""
        table, key, num_tokens = page.holders[0], page.key, page.num_tokens
        frame = self.unmap(page, Tier.HOST)
        parked = Page(page.space_id, page.group, -1)
        parked.holders.append(table)
        parked.owners[table.owner] = 1
        self.map(parked, Tier.HOST, frame)
        parked.key, parked.num_tokens = key, num_tokens
        self.parked.add(parked, page)
        return parked

    def unpark(self, parked: Page) -> None:
        """Undo a `park`."""
        page, key, num_tokens = self.parked.pop(parked), parked.key, parked.num_tokens
        self.map(page, Tier.HOST, self.unmap(parked, Tier.HOST))
        page.key, page.num_tokens = key, num_tokens

    def parked_frames(self) -> list[tuple[int, int]]:
        """Space and frame of every parked copy."""
        return self.parked.frames()

    def _spread_residue(self, page: Page, owner: str) -> None:
        """Bytes of another owner may be written into the page's frames from now on."""
        for tier in WORKER_TIERS:
            frame = frame_of(page, tier)
            if frame is not None:
                pool = self.pool(page.space_id, tier)
                pool.set_residue(frame, pool.residue(frame) | {owner}, is_inherited=pool.is_inherited(frame))

    def _charge(self, page: Page, tier: Tier) -> None:
        self.ledger.charge_page(tier, page.owners, page.holders[0].owner, frame_bytes(self.spaces[page.space_id], tier))

    def _refund(self, page: Page, tier: Tier) -> None:
        self.ledger.refund_page(tier, page.owners, page.holders[0].owner, frame_bytes(self.spaces[page.space_id], tier))

    def _recharge(self, page: Page, sign: int) -> None:
        """Take back (-1) or make (1) the charges of a page whose holders change."""
        if not page.holders:
            return
        for tier in TIERS:
            if frame_of(page, tier) is not None:
                (self._charge if sign > 0 else self._refund)(page, tier)


def frame_bytes(space: Space, tier: Tier) -> int:
    """Bytes of a frame of the space in a tier."""
    return space.device_frame_bytes if tier is Tier.DEVICE else space.host_frame_bytes


def frame_of(page: Page, tier: Tier) -> int | None:
    """The frame of a page in a tier."""
    if tier is Tier.DEVICE:
        return page.device_frame
    return page.host_frame if tier is Tier.HOST else page.disk_frame
