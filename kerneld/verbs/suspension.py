"""The verb that moves a context out wholly: suspend to disk.

    suspended (journaled) --> pages on the device are copied to the host tier --> spilled to the disk tier --> gone from both

What is out needs no memory, and survives the daemon: the pages of a context are found again by the links of its hash chain. Pages that
other contexts share stay where those need them.
"""

from __future__ import annotations

from kerneld.calls import Caller, ContextInfo, ContextState
from kerneld.context import Context
from kerneld.disk.tier import DiskTier
from kerneld.errors import Conflict, DiskFull, Unavailable, WrongState
from kerneld.machine import Machine
from kerneld.seating import cut_chain, name_pages
from kerneld.verbs.contexts import ContextVerbs
from kerneld.verbs.edits import EditVerbs
from memory.page import Tier
from memory.remedy import size_text
from memory.table import Page, PageTable

ROUNDS_WITHOUT_PROGRESS = 4


class SuspensionVerbs:
    """Moves contexts out."""

    def __init__(self, machine: Machine, contexts: ContextVerbs, edits: EditVerbs) -> None:
        self._machine = machine
        self._contexts = contexts
        self._edits = edits

    async def suspend_to_disk(self, caller: Caller, context_id: str) -> ContextInfo:
        """Suspend a context and move all its pages to the disk tier; answers when they are there.

        Raises: NotFound, WrongState; Conflict, if somebody resumes it meanwhile; DiskFull, Unavailable, if not all of it could be moved:
        the context is suspended all the same, and the rest follows when there is room.
        """
        machine = self._machine
        tier = machine.devices.of(machine.contexts.control(caller, context_id)).disk_tier
        if tier is None:
            raise WrongState(
                "There is no disk tier to move a context to; an administrator sets memory.page_file_bytes.", reason="NO_DISK_TIER"
            )
        await self._edits.suspend(caller, context_id)
        context = machine.contexts.control(caller, context_id)
        if context.state is ContextState.SUSPENDED and context.table is not None:
            await self._move_out(context, context.table, tier)
        return self._contexts.info(context)

    async def _move_out(self, context: Context, table: PageTable, tier: DiskTier) -> None:
        device, num_tokens = self._machine.devices.of(context), context.kv_valid
        pager = device.pager
        assert context.chain is not None, "made with the table"
        name_pages(context, num_tokens)
        chain = context.chain.fork()
        cut_chain(chain, num_tokens, context)
        pager.bury(table, num_tokens, chain.keys, chain.partial_key())
        distance, patience = _distance(table), ROUNDS_WITHOUT_PROGRESS
        while not pager.is_buried(table):
            await device.dispatcher.flush()
            tier.reclaimer.now()
            if not tier.mover.is_idle:
                await tier.settled()
            if context.state is not ContextState.SUSPENDED or context.table is not table:
                raise Conflict("The context was resumed or freed while it was being moved out.")
            patience = ROUNDS_WITHOUT_PROGRESS if _distance(table) < distance else patience - 1
            distance = _distance(table)
            if not patience and not pager.is_buried(table):
                self._give_up(context, table, tier)

    def _give_up(self, context: Context, table: PageTable, tier: DiskTier) -> None:
        """Say what keeps a context in memory. Raises: Unavailable, DiskFull."""
        counts = table.counts()
        facts = {"context": context.id, "pages_left": str(counts.device + counts.host_only), "pages_on_disk": str(counts.disk_only)}
        held = f"{counts.device + counts.host_only} of its pages are still in memory"
        if tier.mover.is_paused():
            raise Unavailable(f"The context is suspended, but {held}: the disk tier failed.", reason="DISK_TIER_FAILED", facts=facts)
        raise DiskFull(f"The context is suspended, but {held}: {self._lack(context, table, tier)}", reason="DISK_TIER_FULL", facts=facts)

    def _lack(self, context: Context, table: PageTable, tier: DiskTier) -> str:
        """What there is too little of, and what would help."""
        ledger, page_bytes = self._machine.devices.of(context).pager.ledger, max(space.host_frame_bytes for space in table.spaces)
        capped = ledger.exceeded(context.tenant, Tier.DISK, page_bytes)
        if capped is not None:
            limit = size_text(ledger.limit(capped, Tier.DISK).limit_bytes)
            return f"{capped} is at its limit of the disk tier, {limit}. Free contexts that are there, or ask an administrator to raise it."
        if not tier.reclaimer.has_room():
            reserve = size_text(self._machine.config.kerneld.disk_reserve_bytes)
            return f"{tier.file.path.parent} is too full: {reserve} of it are kept free (kerneld.disk_reserve_bytes). Free some of it."
        free_bytes = next((each.free_bytes for each in ledger.snapshot() if each.tier is Tier.DISK), 0)
        return (
            f"the disk tier has {size_text(free_bytes)} free. Free contexts that are there, or ask an administrator to raise "
            "memory.page_file_bytes."
        )


def _distance(table: PageTable) -> int:
    """How far the pages of a table are from being out, in moves that are still to be made."""
    return sum(_moves_left(page) for pages in table.pages for page in pages)


def _moves_left(page: Page) -> int:
    if page.is_lost or page.is_far:
        return 0
    if page.disk_frame is not None:
        return 1
    return 2 if page.host_frame is not None else 3
