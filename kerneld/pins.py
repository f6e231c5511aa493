"""Pins: prefixes of contexts whose pages go last of all that their tenant has, and how many bytes of them a tenant may have.

A pin covers the tokens that a context has when it is set: a prefix, which others may share. It keeps nobody from running: when nothing else
is left, pinned pages go too.

Invariants
1. What a tenant has pinned was, when it was set, within its guarantee of the device tier, or within half of the tier if it has none.
"""

from __future__ import annotations

from collections.abc import Callable

from kerneld.context import Context
from kerneld.errors import QuotaExceeded
from kerneld.models import ModelTable
from memory.page import Tier
from memory.pager import Pager
from memory.remedy import size_text


class Pins:
    """The pinned prefixes of all contexts on one device."""

    def __init__(self, pager: Pager, contexts_of: Callable[[str], list[Context]], models: ModelTable, device_bytes: int) -> None:
        """`contexts_of` gives those of a tenant, and of everybody beneath it, that are on the device."""
        self._pager = pager
        self._contexts_of = contexts_of
        self._models = models
        self._device_bytes = device_bytes

    def check(self, context: Context, num_tokens: int) -> None:
        """See whether the first tokens of a context may be pinned. Raises: QuotaExceeded, with what is pinned and how much may be."""
        guarantee = self._pager.ledger.limit(context.tenant, Tier.DEVICE).guarantee_bytes
        most = guarantee or self._device_bytes // 2
        wanted = self._size_bytes(context, num_tokens)
        pinned = self.size_bytes(context.tenant, but=context)
        if pinned + wanted <= most:
            return
        why = "its guarantee" if guarantee else "half of the device, for a tenant without a guarantee"
        raise QuotaExceeded(
            f"{context.tenant} has {size_text(pinned)} pinned; {size_text(wanted)} more would be above {size_text(most)}, {why}. "
            f"Unpin {size_text(pinned + wanted - most)} first, or raise the guarantee to {size_text(pinned + wanted)}.",
            reason="PINNED_TOO_MUCH",
            facts={"tenant": context.tenant, "limit_bytes": str(most), "used_bytes": str(pinned), "needed_bytes": str(wanted)},
        )

    def put(self, context: Context, num_tokens: int) -> None:
        """Pin the first tokens of a context; 0 ends that."""
        context.pinned_tokens = num_tokens
        if context.table is not None:
            self._pager.pin(context.table, num_tokens)

    def size_bytes(self, path: str, but: Context | None = None) -> int:
        """Bytes on the device that the pinned prefixes of a tenant and those beneath it take when they are there."""
        contexts = (context for context in self._contexts_of(path) if context.pinned_tokens and context is not but)
        return sum(self._size_bytes(context, context.pinned_tokens) for context in contexts)

    def _size_bytes(self, context: Context, num_tokens: int) -> int:
        spaces = self._models.get(context.model).spaces if context.model in self._models else ()
        num_pages = -(-num_tokens // self._pager.page_tokens)
        return num_pages * sum(space.device_frame_bytes for space in spaces)
