"""The verbs on memory as a whole: who holds it, why something is not where it is wanted, and whether all of it holds."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

from kerneld.calls import Caller, ListArgs, ListPage
from kerneld.deviceparts import DeviceParts
from kerneld.explain import Explainer
from kerneld.fsck import Fsck
from kerneld.holdings import Explanation, MemoryReport, Outlook, PartChecked, PathDecision, TierAccount, TierTotal
from kerneld.lookout import Lookout
from kerneld.machine import Machine
from kerneld.security.acl import may_see_everything, may_see_tenant
from memory.ledger import Account, Kind, TierSnapshot
from memory.page import Tier

OTHERS = "others"
MODELS = "models"  # holds the weights that everybody shares
CACHE = "cache"  # KV of freed contexts
MOST_DECISIONS = 1000


class MemoryVerbs:
    """Reads the ledger; explains; checks."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def read_memory(self, caller: Caller, num_decisions: int = 0) -> MemoryReport:
        """The ledger: all of it for those who see everything, else own rows, and what the others hold together.

        `num_decisions`: so many of the latest choices between bringing pages back and computing them again, newest first.
        """
        devices = self._machine.devices
        accounts = tuple(account for device in devices for tier in Tier for account in self._accounts(caller, device, tier))
        decisions = self._decisions(caller, min(num_decisions, MOST_DECISIONS)) if num_decisions else ()
        totals = (_total(device, snapshot) for device in devices for snapshot in device.pager.ledger.snapshot())
        return MemoryReport(tuple(totals), accounts, decisions)

    def explain_context(self, caller: Caller, context_id: str) -> Explanation:
        """Why a context is where it is, and why it waits. Raises: NotFound."""
        return Explainer(self._machine, caller).context(context_id)

    def explain_model(self, caller: Caller, name: str) -> Explanation:
        """Why a model is where it is. Raises: NotFound."""
        return Explainer(self._machine, caller).model(name)

    def explain_request(self, caller: Caller, request_id: str) -> Explanation:
        """Why a request waits, and when it starts; of one that ended lately, how it went. Raises: NotFound."""
        return Explainer(self._machine, caller).request(request_id)

    def list_requests(self, caller: Caller, args: ListArgs) -> ListPage[Outlook]:
        """One page of the requests that wait or run: the caller's own, or everybody's for operators. Raises: InvalidArgument."""
        return Lookout(self._machine, caller).page(args)

    async def fsck(self, caller: Caller) -> AsyncIterator[PartChecked]:
        """Check books, pages, images and journal while the daemon runs; one answer per part."""
        del caller  # its permission was checked, and the answer names nobody's content
        async for part in Fsck(self._machine).run():
            yield part

    # ------------------------------------------------------------------------------------------------------------------------ inside

    def _accounts(self, caller: Caller, device: DeviceParts, tier: Tier) -> list[TierAccount]:
        """Accounts that the caller may see, in order, and the others added up."""
        everything = may_see_everything(caller.principal)
        shown, others = [], dict[str, int]()
        cached = device.pager.sharing.cached_bytes(tier)
        for account in device.pager.ledger.accounts(tier):
            if everything or account.owner == MODELS or may_see_tenant(caller.principal, account.owner):
                shown.append(_account(device, account, cached.get(account.owner, 0)))
                continue
            for kind, size in account.kinds.items():
                others[kind.value] = others.get(kind.value, 0) + size
        if others:
            shown.append(TierAccount(OTHERS, tier.name.lower(), others, sum(others.values()), device=device.label))
        return shown

    def _decisions(self, caller: Caller, count: int) -> tuple[PathDecision, ...]:
        """The latest decisions about contexts that the caller may see; those of freed ones only for those who see everything."""
        latest = (device.pager.costs.decisions.latest() for device in self._machine.devices)
        found = sorted(itertools.chain.from_iterable(latest), key=lambda decision: -decision.at)
        seen = (decision for decision in found if self._may_see(caller, decision.label))
        return tuple(
            PathDecision(
                at=decision.at,
                model=decision.model,
                context_id=decision.label,
                num_tokens=decision.num_tokens,
                keep_tokens=decision.keep_tokens,
                chosen=decision.chosen.value,
                cost_s=decision.predicted_s,
                alternative=decision.alternative.value,
                alternative_cost_s=decision.alternative_s,
                measured_s=decision.measured_s,
            )
            for decision in itertools.islice(seen, count)
        )

    def _may_see(self, caller: Caller, context_id: str) -> bool:
        context = self._machine.contexts.find(context_id)
        everything = may_see_everything(caller.principal)
        return everything or (context is not None and may_see_tenant(caller.principal, context.tenant))


def _total(device: DeviceParts, snapshot: TierSnapshot) -> TierTotal:
    ledger, tier = device.pager.ledger, snapshot.tier
    kinds = {kind.value: size for kind in Kind if (size := ledger.kind_bytes(tier, kind))}
    return TierTotal(tier.name.lower(), snapshot.total_bytes, snapshot.free_bytes, ledger.promised(tier), kinds, device.label)


def _account(device: DeviceParts, account: Account, cached_bytes: int) -> TierAccount:
    kinds = {kind.value: size for kind, size in account.kinds.items()}
    if cached_bytes:  # of freed contexts: it is the owner's, and goes first
        cached_bytes = min(cached_bytes, kinds.get(Kind.KV.value, 0))
        kinds |= {Kind.KV.value: kinds.get(Kind.KV.value, 0) - cached_bytes, CACHE: cached_bytes}
    return TierAccount(
        owner=account.owner,
        tier=account.tier.name.lower(),
        kinds=kinds,
        used_bytes=account.used_bytes,
        guarantee_bytes=account.limit.guarantee_bytes,
        limit_bytes=account.limit.limit_bytes,
        borrowed_bytes=0 if account.owner == MODELS else account.borrowed_bytes,  # weights are everybody's
        excess_bytes=account.excess_bytes,
        weight=account.weight,
        pinned_bytes=device.pins.size_bytes(account.owner) if account.tier is Tier.DEVICE else 0,
        device=device.label,
    )
