"""Adoption: pages that an earlier front left in the host tier and in the page file are taken over by the contexts whose tokens they name.

Once in the life of a front for each device, when its first worker is there and before anything is loaded or runs:

    models that contexts live on get their ids  -->  pages are claimed by key  -->  the rest of both tiers is zeroed and punched out

A page is known by its key, which is a link of its context's hash chain, so a page of other tokens, another tenant or another model is never
taken. All contexts whose chain has that link, as forks have, share what the first of them claimed, as they did before. That of the last,
partial page names the tokens in it. Space ids are those of the front that wrote the page: where the model has
others now, the KV groups are matched in the order of their ids; a page of the host tier is relabelled at once, one on disk when it is
fetched. Payloads are not read here: every later read checks them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator

from drivers.client import Device
from drivers.errors import DeviceLost, DriverError, HostPageCorrupt
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.page_header import PageHeader
from kerneld.calls import ContextState
from kerneld.context import Context
from kerneld.deviceparts import DeviceParts
from kerneld.disk.events import DiskTierFailed
from kerneld.machine import Machine
from kerneld.seating import cut_chain
from memory.errors import PagingError
from memory.page import Tier
from memory.prefix import HashChain
from memory.table import PageTable

logger = logging.getLogger(__name__)

ZERO_BYTES = 4 << 20  # at a time

Place = tuple[int, PageHeader]  # a frame, and what it says of itself


class Found:
    """What lies in a tier: frames by key, one list for each space that wrote pages under that key."""

    def __init__(self, places: Iterable[Place], granule_bytes: int) -> None:
        self.num_pages = 0
        self.kept: list[tuple[int, int]] = []  # frames that were claimed, and the bytes of each
        self._granule_bytes = granule_bytes
        self._places: dict[bytes, dict[int, list[Place]]] = defaultdict(dict)
        for frame, header in places:
            self._places[header.key].setdefault(header.space_id, []).append((frame, header))
            self.num_pages += 1

    def take(self, key: bytes, space_ids: tuple[int, ...]) -> list[Place] | None:
        """A place for each group of one page."""
        by_space = self._places.get(key)
        if by_space is None:
            return None
        spaces = space_ids if all(space_id in by_space for space_id in space_ids) else tuple(sorted(by_space))
        if len(spaces) != len(space_ids) or not all(by_space[space_id] for space_id in spaces):
            return None
        return [by_space[space_id].pop(0) for space_id in spaces]

    def keep(self, frame: int, header: PageHeader) -> None:
        """A place has found its context."""
        self.kept.append((frame, host_frame_bytes(header.payload_bytes, self._granule_bytes)))


class Adoption:
    """Takes over what an earlier front left."""

    def __init__(self, machine: Machine, device: DeviceParts) -> None:
        self._machine = machine
        self._parts = device
        self._found: dict[Tier, Found] = {}
        self._adopted: dict[tuple[tuple[int, ...], bytes], tuple[PageTable, int]] = {}  # spaces and key -> a table that has it, and where

    async def run(self, device: Device, *, has_old_host: bool) -> None:
        """Adopt pages of both tiers, and clear the rest. A disk that fails leaves the disk tier unused. Raises: DeviceLost."""
        machine, parts = self._machine, self._parts
        if not has_old_host and parts.disk_tier is None:
            return
        await self._identify(device)
        is_disk_well = await self._look(has_old_host)
        if any(found.num_pages for found in self._found.values()):
            num_tokens = sum(map(self._adopt, [context for context in machine.contexts if self._is_wanted(context)]))
            for tier, found in self._found.items():
                facts = {"tier": tier.name.lower(), "num_found": found.num_pages, "num_pages": len(found.kept), "num_tokens": num_tokens}
                logger.info("pages of an earlier run were adopted", extra=facts)
        is_disk_well = await self._clear() and is_disk_well
        if parts.disk_tier is not None and parts.host is not None and is_disk_well:
            parts.disk_tier.mover.use(parts.host)

    async def _identify(self, device: Device) -> None:
        """Give every model its ids on which a context lives, whether it is to be loaded or not."""
        for name in {name for context in self._machine.contexts if context.is_alive and context.num_tokens for name in context.models}:
            try:
                await self._parts.residency.identify(self._parts.models.get(name), device)
            except DeviceLost:
                raise
            except DriverError as error:
                logger.warning("pages of a model cannot be adopted", extra={"model": name, "error": str(error)})

    async def _look(self, has_old_host: bool) -> bool:
        """Find what there is. Returns whether the disk did what was asked."""
        parts, granule = self._parts, self._parts.config.memory.granule_bytes
        if has_old_host and parts.host is not None:
            self._found[Tier.HOST] = Found(parts.host.scan(), granule)
        if parts.disk_tier is None:
            return True
        try:
            places = await asyncio.to_thread(lambda file: list(file.scan()), parts.disk_tier.file)
        except OSError as error:
            self._machine.events.publish(DiskTierFailed("scan", 0, str(error)))
            return False
        self._found[Tier.DISK] = Found(places, granule)
        return True

    async def _clear(self) -> bool:
        """Zero and punch out what nobody adopted. Returns whether the disk did what was asked."""
        parts = self._parts
        if Tier.HOST in self._found and parts.host is not None:
            await asyncio.to_thread(_zero_rest, parts.host, self._found[Tier.HOST].kept)
        if Tier.DISK in self._found and parts.disk_tier is not None:
            try:
                await asyncio.to_thread(parts.disk_tier.file.keep_only, self._found[Tier.DISK].kept)
            except OSError as error:
                self._machine.events.publish(DiskTierFailed("punch", 0, str(error)))
                return False
        return True

    # ------------------------------------------------------------------------------------------------------------------ one context

    def _adopt(self, context: Context) -> int:
        """Adopt the leading pages of a context, which is on this device then. Returns the number of tokens in them."""
        parts = self._parts
        was_on, context.device = context.device, parts.label  # pages have the names that they would have here
        table = parts.seating.table_of(context)
        assert context.chain is not None, "made with the table"
        context.chain.extend(context.tokens)
        num_pages = 0
        for key in context.chain.keys:
            if not self._claim(table, num_pages, key):
                break
            num_pages += 1
        context.kv_valid = num_pages * table.page_tokens
        for num_tail, key in _partial_keys(context, context.chain, num_pages):
            if self._claim(table, num_pages, key):
                context.kv_valid += num_tail
                break
        if not context.kv_valid and context.device != was_on:  # another device may have its pages
            parts.pager.drop(table)
            context.device, context.table, context.chain = was_on, None, None
            return 0
        parts.pager.fill(table, num_pages * table.page_tokens, context.chain.keys)  # others of its sharing domain may take them
        if context.state is ContextState.SUSPENDED:
            parts.pager.suspend(table)
        return context.kv_valid

    def _claim(self, table: PageTable, page_idx: int, key: bytes) -> bool:
        """Take over one page of every group, wherever it lies, or share it. Returns whether it is somewhere."""
        known = self._adopted.get((table.space_ids, key))
        if known is not None:
            self._parts.pager.sharing.join(table, *known)
            return True
        is_there = False
        for tier, found in self._found.items():
            places = found.take(key, table.space_ids)
            if places is not None:
                is_there |= self._claim_places(tier, found, table, page_idx, places)
        if is_there:
            self._adopted[table.space_ids, key] = table, page_idx
        return is_there

    def _claim_places(self, tier: Tier, found: Found, table: PageTable, page_idx: int, places: list[Place]) -> bool:
        parts = self._parts
        claim = parts.pager.claim_host if tier is Tier.HOST else parts.pager.claim_disk
        try:
            for group, (frame, header) in enumerate(places):
                claim(table, group, page_idx, frame, header.key, header.num_tokens)
                found.keep(frame, header)
                if tier is Tier.HOST and parts.host is not None and header.space_id != table.space_ids[group]:
                    parts.host.relabel(frame, table.space_ids[group])
        except (PagingError, HostPageCorrupt):  # its frame is not to be had: the page is recomputed
            return False
        return True

    def _is_wanted(self, context: Context) -> bool:
        """Whether pages of a context may be here: it is on this device, or on none yet."""
        models = self._parts.models
        is_known = context.is_alive and all(models.get(name).model_id for name in context.models)
        is_here = context.device in ("", self._parts.label)
        return is_known and is_here and context.table is None and context.num_tokens > 0


def _zero_rest(host: HostMemory, kept: list[tuple[int, int]]) -> None:
    """Zero everything in a tier but these (frame, bytes)."""
    start = 0
    for frame, size_bytes in [*sorted(kept), (host.size_bytes // host.granule_bytes, 0)]:
        end = frame * host.granule_bytes
        for at in range(start, end, ZERO_BYTES):
            host.zero(at // host.granule_bytes, min(ZERO_BYTES, end - at))
        start = end + size_bytes


def _partial_keys(context: Context, chain: HashChain, num_pages: int) -> Iterator[tuple[int, bytes]]:
    """Names that the page behind the first `num_pages` may have if it is not full, with its number of tokens: longest first."""
    start, cut = num_pages * chain.page_tokens, chain.fork()
    for num_tail in range(min(chain.page_tokens - 1, context.num_tokens - start), 0, -1):
        cut_chain(cut, start + num_tail, context)
        yield num_tail, cut.partial_key()
