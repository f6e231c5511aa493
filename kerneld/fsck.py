"""fsck: reads everything that the daemon keeps, while it runs, and says what does not hold.

    books         every numbered invariant of memory
    host tier     the checksum of every page of a context
    disk tier     the same, in the page file
    images        manifests and pages, as `ckpt verify` does
    journal, database, audit log

Nothing is mended: what does not hold in a tier is found again when it is used, and computed anew; the rest is for a person. Bytes are read
in threads, a few pages at a time, so that nobody waits for it.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

from crc32c import crc32c

from drivers.errors import HostPageCorrupt
from drivers.hostmem import HostMemory, host_frame_bytes
from drivers.page_header import HEADER_BYTES, parse_header
from kerneld.checkpoint import ImageStore
from kerneld.deviceparts import DeviceParts
from kerneld.disk.pagefile import PageFile, granule_of
from kerneld.errors import KernelError
from kerneld.holdings import PartChecked
from kerneld.machine import Machine
from kerneld.state.checks import MOST_PROBLEMS, check_audit, check_database, check_journal
from memory.errors import PagingError
from memory.table import HostPage

TRIES = 3  # to check the books in slices before they are checked at once


class Fsck:
    """Checks a running daemon."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._state_dir = machine.config.kerneld.state_dir

    async def run(self) -> AsyncIterator[PartChecked]:
        """One part after the other."""
        for device in self._machine.devices:
            yield await self._books(device)
            yield await self._host_tier(device)
            if device.disk_tier is not None:
                yield await self._disk_tier(device, device.disk_tier.file)
        yield await self._images()
        yield await asyncio.to_thread(check_journal, self._state_dir / "journal", is_live=True)
        yield await asyncio.to_thread(check_database, self._state_dir / "kerneld.db")
        yield await asyncio.to_thread(check_audit, self._state_dir / "audit")

    async def _books(self, device: DeviceParts) -> PartChecked:
        part, tables = _part("books", device), [context.table for context in device.own_contexts() if context.table is not None]
        num_pages = sum(len(pages) for table in tables for pages in table.pages)
        try:
            if not await self._are_sliced_books_whole(device):
                device.pager.check_integrity()  # they do not stand still: all at once
        except PagingError as problem:
            return PartChecked(part, num_pages, "pages", problems=(str(problem),))
        return PartChecked(part, num_pages, "pages")

    @staticmethod
    async def _are_sliced_books_whole(device: DeviceParts) -> bool:
        """Check the books while the loop runs in between. Returns False if they moved on every time. Raises: PagingError."""
        for _ in range(TRIES):
            steps = device.pager.integrity_steps()
            is_whole: bool | None = None
            while is_whole is None:
                try:
                    next(steps)
                except StopIteration as end:
                    is_whole = end.value
                await asyncio.sleep(0)
            if is_whole:
                return True
        return False

    @staticmethod
    async def _host_tier(device: DeviceParts) -> PartChecked:
        """Pages of contexts in the host tier; each context's are held while they are read."""
        pager, host = device.pager, device.host
        num_pages = num_bytes = 0
        problems: list[str] = []
        for context in device.own_contexts() if host is not None else ():
            table = context.table
            if host is None or table is None or not sum(table.num_host):
                continue
            pager.hold_host(table)
            try:
                pages = pager.host_pages(table)
                size_bytes, bad = await asyncio.to_thread(_read_host_pages, host, pages)
            finally:
                pager.release_host(table)
            num_pages, num_bytes = num_pages + len(pages), num_bytes + size_bytes
            problems += [f"context {context.id}: {problem}" for problem in bad]
        return PartChecked(_part("host tier", device), num_pages, "pages", num_bytes, tuple(problems[:MOST_PROBLEMS]))

    async def _disk_tier(self, device: DeviceParts, page_file: PageFile) -> PartChecked:
        """Pages of contexts in the page file. One that seems wrong is looked at again: its frame may have changed hands meanwhile."""
        wanted = _disk_frames(device)
        num_bytes, bad = await asyncio.to_thread(_read_disk_pages, page_file, wanted)
        if bad:
            now = _disk_frames(device)
            still = {frame: key for frame, key in wanted.items() if frame in bad and now.get(frame) == key}
            _, bad = await asyncio.to_thread(_read_disk_pages, page_file, still)
        problems = tuple(f"page file, frame {frame}: {problem}" for frame, problem in bad.items())
        return PartChecked(_part("disk tier", device), len(wanted), "pages", num_bytes, problems[:MOST_PROBLEMS])

    async def _images(self) -> PartChecked:
        machine = self._machine
        images = await machine.store.load_images()
        secrets = {image.id: machine.tenants.get(image.tenant).secret for image in images if image.tenant in machine.tenants}
        return await asyncio.to_thread(check_images, machine.images, secrets)


def _part(name: str, device: DeviceParts) -> str:
    """What a part is called: with the name of its device, where there are several."""
    return f"{name} of {device.label}" if device.label else name


def _disk_frames(device: DeviceParts) -> dict[int, bytes]:
    """Key of the page in every frame of the page file that a context names."""
    tables = (context.table for context in device.own_contexts() if context.table is not None)
    pages = (page for table in tables for group in table.pages for page in group)
    return {page.disk_frame: page.key for page in pages if page.disk_frame is not None}


def check_images(store: ImageStore, secrets: Mapping[str, bytes]) -> PartChecked:
    """Read every image again; `secrets` are those of the tenants whose images they are, by image."""
    num_bytes = 0
    problems: list[str] = []
    for image_id, secret in secrets.items():
        try:
            found = store.verify(image_id, secret)
        except KernelError as error:
            problems.append(f"image {image_id}: {error.message}")
            continue
        num_bytes += found.bytes_read
        problems += [f"image {image_id}: {problem}" for problem in found.problems]
    return PartChecked("images", len(secrets), "images", num_bytes, tuple(problems[:MOST_PROBLEMS]))


def check_page_file(path: Path) -> PartChecked:
    """Read every page in the page file of a daemon that is stopped. Raises: OSError."""
    granule_bytes = granule_of(path)
    if granule_bytes is None:
        return PartChecked(
            "disk tier", 0, "pages", problems=(f"{path.name} is no page file of this version; the next start begins it anew.",)
        )
    page_file = PageFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), granule_bytes)
    try:
        keys = {frame: header.key for frame, header in page_file.scan()}
        num_bytes, bad = _read_disk_pages(page_file, keys)
    finally:
        page_file.close()
    problems = tuple(f"{path.name}, frame {frame}: {problem}; it will be computed again." for frame, problem in bad.items())
    return PartChecked("disk tier", len(keys), "pages", num_bytes, problems[:MOST_PROBLEMS])


def _read_host_pages(host: HostMemory, pages: Iterable[HostPage]) -> tuple[int, list[str]]:
    num_bytes = 0
    problems: list[str] = []
    for page in pages:
        try:
            header = host.peek(page.frame)
            if header is not None and header.key != page.key:
                problems.append(f"page {page.page_idx} holds other tokens than the books say")
            with host.payload(page.frame) as payload:
                num_bytes += payload.nbytes
        except HostPageCorrupt as error:
            problems.append(f"page {page.page_idx}: {error}")
    return num_bytes, problems


def _read_disk_pages(page_file: PageFile, keys: Mapping[int, bytes]) -> tuple[int, dict[int, str]]:
    num_bytes = 0
    problems: dict[int, str] = {}
    for frame, key in keys.items():
        try:
            size_bytes, problem = _read_disk_page(page_file, frame, key)
        except OSError as error:
            size_bytes, problem = 0, f"it cannot be read ({error.strerror})"
        num_bytes += size_bytes
        if problem:
            problems[frame] = problem
    return num_bytes, problems


def _read_disk_page(page_file: PageFile, frame: int, key: bytes) -> tuple[int, str]:
    """Bytes of a page that were read, and what is wrong with it. Raises: OSError."""
    with mmap.mmap(-1, page_file.granule_bytes) as head, memoryview(head) as view:  # aligned, as direct reads want it
        page_file.read(frame, view)
        header = parse_header(bytes(view[:HEADER_BYTES]))
    if header is None:
        return page_file.granule_bytes, "it holds no page"
    size_bytes = host_frame_bytes(header.payload_bytes, page_file.granule_bytes)
    with mmap.mmap(-1, size_bytes) as whole, memoryview(whole) as view:
        page_file.read(frame, view)
        with view[HEADER_BYTES : HEADER_BYTES + header.payload_bytes] as payload:
            is_whole = crc32c(payload) == header.payload_checksum
    if not is_whole:
        return size_bytes, "its checksum does not hold"
    return size_bytes, "" if header.key == key else "it holds other tokens than the books say"
