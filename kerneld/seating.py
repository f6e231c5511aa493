"""Seating: what a request needs before it can run: the page table of its context, and the place where its computing begins.

    0              position                          num_tokens
    |-- KV intact --|-- lost, or never computed ------|          a lost page is recomputed as a part of the prefill

The last token is always computed again, because the logits after it are what the next token is sampled from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kerneld.context import Context
from kerneld.eventbus import EventBus
from kerneld.events import PagesRestored, PrefixLooked
from kerneld.meter import Meter
from kerneld.models import ModelTable
from kerneld.request import Request
from kerneld.rows import Row
from kerneld.tenants import TenantTable
from memory.pager import Pager
from memory.prefix import HashChain
from memory.table import PageTable


class Seating:
    """Makes rows of requests."""

    def __init__(self, pager: Pager, models: ModelTable, tenants: TenantTable, events: EventBus) -> None:
        self._pager = pager
        self._tenants = tenants
        self._events = events
        self._models = models
        self.meter = Meter(pager.costs)
        self.on_filled: Callable[[Context, Sequence[bytes]], None] = lambda _context, _links: None

    def model_ids(self, request: Request) -> tuple[int, int, int]:
        """The driver's ids of the model and the adapter that the request runs on, and of the model that guesses for it; 0: none."""
        adapter, draft = request.context.adapter, request.args.draft_model
        return (
            self._models.get(request.context.model).model_id,
            self._models.get(adapter).model_id if adapter else 0,
            self._models.get(draft).model_id if draft in self._models else 0,
        )

    def table_of(self, context: Context) -> PageTable:
        """The page table of a context, made now if it has none. Its model has been loaded once."""
        if context.table is None:
            model = self._models.get(context.model)
            context.table = self._pager.new_table(context.tenant, model.space_ids)
            context.chain = self.chain_of(context)
            self._pager.pin(context.table, context.pinned_tokens)
        return context.table

    def chain_of(self, context: Context) -> HashChain:
        """A new hash chain for a context: pages of one domain on one model share names, those of two domains never do."""
        key = self._tenants.prefix_key(context.tenant, context.sharing_group)
        return HashChain(key + self.fingerprint(context), self._pager.page_tokens)

    def fingerprint(self, context: Context) -> bytes:
        """Names everything that the bits of a context's pages depend on: its model as it is computed, and its adapter."""
        return b"".join(self._models.get(name).fingerprint for name in context.models)

    def seat(self, request: Request, slot: int) -> Row:
        """Seat a request in a free row slot."""
        context = request.context
        table = self.table_of(context)
        intact = min(context.kv_valid, table.at_hand_tokens())
        page_tokens = self._pager.page_tokens
        table.label = context.id
        decision = self.meter.choose(context.id, table, context.kv_valid)
        intact = min(intact, decision.keep_tokens)
        position = min(intact, request.needs_logits_from)
        row = Row(request, slot, table, position, context.num_tokens, request.num_remaining, score_from=request.score_from)
        row.decision = decision
        row.num_restored = sum(page.device_frame is None for pages in table.pages for page in pages[: -(-intact // page_tokens)])
        row.num_lost = -(-context.kv_valid // page_tokens) - -(-intact // page_tokens)
        return row

    def started(self, row: Row) -> None:
        """The plan that seats a row goes out: what it costs to have its pages again is counted, once."""
        request, context = row.request, row.request.context
        context.kv_valid = row.position
        self.meter.started(row)
        request.num_fetches = 0
        request.pages_restored += row.num_restored
        request.pages_recomputed += row.num_lost
        if row.num_restored or row.num_lost:
            self._events.publish(PagesRestored(context.tenant, row.num_restored, row.num_lost))
        if request.looked_from is not None and row.total > request.looked_from:
            num_shared = max(row.position - request.looked_from, 0)
            request.num_shared += num_shared
            self._events.publish(PrefixLooked(request.id, context.tenant, row.total - request.looked_from, num_shared))
        request.looked_from = None

    def note_valid(self, context: Context, num_tokens: int) -> None:
        """KV of the first `num_tokens` tokens is computed; pages that became full get their names."""
        before, context.kv_valid = context.kv_valid, num_tokens
        first, end = before // self._pager.page_tokens, num_tokens // self._pager.page_tokens
        if first == end or context.table is None:
            return
        name_pages(context, num_tokens)
        assert context.chain is not None
        self._pager.fill(context.table, num_tokens, context.chain.keys)
        self.on_filled(context, context.chain.keys[first:end])


def name_pages(context: Context, num_tokens: int) -> None:
    """Extend a context's chain over its first `num_tokens` tokens."""
    assert context.chain is not None
    known = context.chain.num_tokens
    if num_tokens > known:
        context.chain.extend(context.tokens[known:num_tokens])


def cut_chain(chain: HashChain, num_tokens: int, context: Context) -> None:
    """Take a chain of this context's tokens back to the first `num_tokens` of them, if it is longer."""
    if num_tokens < chain.num_tokens:
        last_full = num_tokens // chain.page_tokens * chain.page_tokens
        chain.truncate(num_tokens, context.tokens[last_full:num_tokens])
