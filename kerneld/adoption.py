"""Adoption: pages that an earlier front left in the host tier are taken over by the contexts whose tokens they still name.

A page is known by its key, which is a link of its context's hash chain, so a page of other tokens, another tenant or another model is never
taken. Space ids are those of the front that wrote the page: where the model has others now the page is relabelled, the KV groups of a
model in the order of their ids.
"""

from __future__ import annotations

import logging
from collections import defaultdict

from drivers.errors import HostPageCorrupt
from drivers.hostmem import HostMemory
from kerneld.context import Context
from kerneld.machine import Machine
from kerneld.models import Model
from memory.errors import PagingError
from memory.table import PageTable

logger = logging.getLogger(__name__)


class _Found:
    """What lies in the host tier: frames by key, one list for each space that wrote pages under that key."""

    def __init__(self, host: HostMemory) -> None:
        self.num_pages = 0
        self._frames: dict[bytes, dict[int, list[tuple[int, int]]]] = defaultdict(dict)
        for frame, header in host.scan():
            self._frames[header.key].setdefault(header.space_id, []).append((frame, header.num_tokens))
            self.num_pages += 1

    def take(self, key: bytes, space_ids: tuple[int, ...]) -> list[tuple[int, int]] | None:
        """Frame and number of tokens for each group of one page; two contexts with the same past find a copy each, if there are two."""
        by_space = self._frames.get(key)
        if by_space is None:
            return None
        spaces = space_ids if all(space_id in by_space for space_id in space_ids) else tuple(sorted(by_space))
        if len(spaces) != len(space_ids) or not all(by_space[space_id] for space_id in spaces):
            return None
        return [by_space[space_id].pop() for space_id in spaces]


def adopt_host_pages(machine: Machine, model: Model) -> int:
    """Let the contexts of a model have the pages that are still theirs. Returns how many were adopted."""
    if machine.host is None:
        return 0
    found, adopted = _Found(machine.host), 0
    for context in machine.contexts:
        if context.model == model.name and context.table is None and context.is_alive and context.num_tokens:
            adopted += _adopt_pages(machine, machine.host, context, found)
    logger.info("pages of the host tier were adopted", extra={"model": model.name, "num_pages": adopted, "num_found": found.num_pages})
    return adopted


def _adopt_pages(machine: Machine, host: HostMemory, context: Context, found: _Found) -> int:
    """Adopt the leading full pages of one context."""
    table = machine.seating.table_of(context)
    assert context.chain is not None, "made with the table"
    context.chain.extend(context.tokens)
    adopted = 0
    for page_idx, key in enumerate(context.chain.keys):
        places = found.take(key, table.space_ids)
        if places is None or not _claim_page(machine, host, table, page_idx, places):
            break
        adopted += 1
    context.kv_valid = adopted * machine.pager.page_tokens
    return adopted * len(table.space_ids)


def _claim_page(machine: Machine, host: HostMemory, table: PageTable, page_idx: int, places: list[tuple[int, int]]) -> bool:
    """Take over one page of every group."""
    try:
        for group, (frame, num_tokens) in enumerate(places):
            header = host.peek(frame)
            if header is None:
                return False
            machine.pager.claim_host(table, group, page_idx, frame, header.key, num_tokens)
            if header.space_id != table.space_ids[group]:
                host.relabel(frame, table.space_ids[group])
    except (PagingError, HostPageCorrupt):  # its frame is taken by somebody else: the page is recomputed
        return False
    return True
