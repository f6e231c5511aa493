"""ContextTable: every living context by id, who may touch it, and in which order lists show them.

Invariants
1. Only this table adds and removes contexts; a context in it is never FREED.
2. A caller that may not see a context gets the same NotFound as for one that is not there (promise 10).
3. `Registered.num_contexts` and the per-tenant counts equal what is in the table.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from kerneld.calls import Access, Caller, ListArgs, ListPage
from kerneld.catalog import Catalog
from kerneld.context import Context
from kerneld.errors import InvalidArgument, NotFound
from kerneld.security.acl import is_owner, may, may_control, may_see, may_see_everything
from kerneld.tally import Tally

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

Item = TypeVar("Item")


class ContextTable:
    """The living contexts of this machine."""

    def __init__(self, models: Catalog, per_tenant: Tally, clock: Callable[[], float] = time.time) -> None:
        """`per_tenant` is kept equal to what is in the table."""
        self._models = models
        self._clock = clock
        self._contexts: dict[str, Context] = {}
        self._ids: list[str] = []  # sorted, so that pages of a list stay put while contexts come and go
        self._per_tenant = per_tenant

    def __len__(self) -> int:
        return len(self._contexts)

    def __iter__(self) -> Iterator[Context]:
        return iter(list(self._contexts.values()))

    def add(self, context: Context) -> None:
        """Make a context known."""
        self._contexts[context.id] = context
        bisect.insort(self._ids, context.id)
        self._per_tenant.add(context.tenant)
        for name in context.models:
            if name in self._models:
                self._models.get(name).num_contexts += 1

    def remove(self, context: Context) -> None:
        """Forget a context."""
        del self._contexts[context.id]
        self._ids.pop(bisect.bisect_left(self._ids, context.id))
        self._per_tenant.remove(context.tenant)
        for name in context.models:
            if name in self._models:
                self._models.get(name).num_contexts -= 1

    def find(self, context_id: str) -> Context | None:
        """The context of that id, whoever asks; None if there is none."""
        return self._contexts.get(context_id)

    def get(self, caller: Caller, context_id: str, access: Access) -> Context:
        """The context, if the caller may do that with what is in it. Raises: NotFound (invariant 2)."""
        return self._check(context_id, lambda c: may(caller.principal, c.owner, c.tenant, c.grants.values(), access, self._clock()))

    def look(self, caller: Caller, context_id: str) -> Context:
        """The context, if the caller may know its state. Raises: NotFound."""
        return self._check(context_id, lambda c: may_see(caller.principal, c.owner, c.tenant, c.grants.values(), self._clock()))

    def control(self, caller: Caller, context_id: str) -> Context:
        """The context, if the caller may suspend, cancel, free or re-prioritize it. Raises: NotFound."""
        return self._check(context_id, lambda c: may_control(caller.principal, c.owner, c.tenant, c.grants.values(), self._clock()))

    def _check(self, context_id: str, is_allowed: Callable[[Context], bool]) -> Context:
        context = self._contexts.get(context_id)
        if context is None or not is_allowed(context):
            raise NotFound("context", context_id)
        return context

    def count_below(self, tenant: str) -> int:
        """Contexts of a tenant and everybody beneath it."""
        return self._per_tenant.of(tenant)

    def of_tenant(self, tenant: str) -> list[Context]:
        """Contexts of a tenant and everybody beneath it."""
        prefix = tenant + "/"
        return [context for context in self._contexts.values() if context.tenant == tenant or context.tenant.startswith(prefix)]

    def page(self, caller: Caller, args: ListArgs) -> ListPage[Context]:
        """One page of the contexts that the caller may see, by id. Without `everybody` only the caller's own are shown."""
        everybody = args.everybody and may_see_everything(caller.principal)

        def is_wanted(context: Context) -> bool:
            return (
                (everybody or is_owner(caller.principal, context.owner, context.tenant))
                and (not args.model or args.model in context.models)
                and (not args.tenant or context.tenant == args.tenant or context.tenant.startswith(args.tenant + "/"))
            )

        return page_of(self._ids, args, lambda context_id: self._contexts[context_id], is_wanted)


def page_of(keys: list[str], args: ListArgs, item_of: Callable[[str], Item], is_wanted: Callable[[Item], bool]) -> ListPage[Item]:
    """A page of a list in the order of its sorted keys; the token is the last key shown. Raises: InvalidArgument."""
    if args.page_size < 0 or args.page_size > MAX_PAGE_SIZE:
        raise InvalidArgument("page_size", f"use 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}.")
    size = args.page_size or DEFAULT_PAGE_SIZE
    items: list[Item] = []
    last = ""
    for key in keys[bisect.bisect_right(keys, args.page_token) :]:
        item = item_of(key)
        if not is_wanted(item):
            continue
        if len(items) == size:
            return ListPage(tuple(items), last)
        items.append(item)
        last = key
    return ListPage(tuple(items))
