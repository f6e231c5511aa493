"""The counters of a page table: what `memory.table` invariant 3 says, kept page by page."""

from __future__ import annotations

from memory.table import Page, PageTable


def count_page(table: PageTable, page: Page, change: int) -> None:
    """Count a page in (1) or out (-1) of a table's counters of tiers, as it is now."""
    group = page.group
    is_host, is_disk = page.host_frame is not None, page.disk_frame is not None
    if page.device_frame is not None:
        table.num_device[group] += change
        table.num_copied[group] += change * (is_host or is_disk)
    elif is_disk and not is_host:
        table.num_disk[group] += change
    elif not is_host:
        table.num_lost[group] += change
    if is_host:
        table.num_host[group] += change
        table.num_saved[group] += change * is_disk


def count_in_all(page: Page, change: int) -> None:
    """Count a page in (1) or out (-1) of the counters of every table that holds it; a parked copy counts nowhere."""
    if not page.is_parked:
        for table in page.holders:
            count_page(table, page, change)


def counted(pages: list[Page]) -> tuple[int, ...]:
    """What the counters of a group with these pages have to be, in the order of `counters_of`."""
    return tuple(map(sum, zip(*map(_counts_of, pages), strict=True))) if pages else (0,) * 7


def counters_of(table: PageTable, group: int) -> tuple[int, ...]:
    """The counters of one group."""
    counters = (table.num_device, table.num_host, table.num_disk, table.num_copied, table.num_saved, table.num_lost, table.num_shared)
    return tuple(counter[group] for counter in counters)


def _counts_of(page: Page) -> tuple[bool, ...]:
    is_on = (page.device_frame is not None, page.host_frame is not None)
    return (*is_on, page.is_far, page.is_copied, page.is_saved, page.is_lost, len(page.holders) > 1)
