"""Explain: why a request, a context or a model is where it is, why it waits, and the smallest change that would let it go on.

    context    its request:  none | runs | waits: for its model, its tenant's limits, frames, pages on disk, its turn
    model      resident | on its way | not wanted | failed: what it needed, and who holds that

It reads live parts and changes nothing. What another tenant has is named by tenant and size only, unless the caller sees everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kerneld.calls import Caller, ContextState, ModelState
from kerneld.catalog import Registered
from kerneld.context import Context
from kerneld.deviceparts import DeviceParts
from kerneld.holdings import Explanation, Holding, Obstacle, Outlook, Placement, QueuePlace
from kerneld.inventory import holdings_of, is_busy, missing_bytes, model_bytes, num_in, reclaimable_bytes, tier_bytes
from kerneld.lookout import Lookout
from kerneld.machine import Machine
from kerneld.models import Model
from kerneld.remedies import Needer, Shortage, remedies_of
from kerneld.request import Place, Request, RequestState
from kerneld.security.acl import may_see
from kerneld.tally import ancestors
from memory.errors import NeverFits, OutOfFrames, OverLimit
from memory.page import Tier
from memory.remedy import Remedy, size_text

MOST_HOLDERS = 8


class Explainer:
    """Explains one thing to one caller."""

    def __init__(self, machine: Machine, caller: Caller) -> None:
        self._machine = machine
        self._caller = caller
        self._lookout = Lookout(machine, caller)

    # ------------------------------------------------------------------------------------------------------------------ requests

    def request(self, request_id: str) -> Explanation:
        """Why a request waits, or how it went if it ended lately. Raises: NotFound."""
        found = self._lookout.find(request_id)
        if isinstance(found, Outlook):
            return Explanation(f"request {request_id}", found.state, _ending_text(found), outlook=found)
        told = self._context(found.context, found)
        assert told.outlook is not None, "it has not ended"
        return replace(told, subject=f"request {request_id}", state=told.outlook.state)

    # ------------------------------------------------------------------------------------------------------------------ contexts

    def context(self, context_id: str) -> Explanation:
        """Why a context is where it is. Raises: NotFound."""
        context = self._machine.contexts.look(self._caller, context_id)
        return self._context(context, self._machine.requests.get(context.active_request))

    def _context(self, context: Context, request: Request | None) -> Explanation:
        device = self._machine.devices.of(context)
        outlook = self._lookout.outlook(request) if request is not None else None
        obstacles = list(self._obstacles(device, context, request, outlook))
        shortage = _shortage(device, obstacles)
        remedies = self.remedies(device, shortage, context.tenant, context.model) if shortage is not None else []
        is_short = shortage is not None
        return Explanation(
            subject=f"context {context.id}",
            state=context.state.value,
            summary=self._summary(context, request, obstacles),
            placements=tuple(_placements(device, context)),
            obstacles=tuple(obstacles),
            holders=tuple(self.holders(device, Tier.DEVICE)) if is_short else (),
            remedies=tuple(remedies),
            queue=self._place(request) if request is not None else None,
            outlook=outlook,
        )

    def _summary(self, context: Context, request: Request | None, obstacles: list[Obstacle]) -> str:
        if context.state is ContextState.FAILED:
            return f"It failed: {context.failure}"
        if request is None:
            if context.state is ContextState.SUSPENDED:
                return "It is suspended: its pages are the first to give way, and no request runs on it before it is resumed."
            return "It is idle: no request runs or waits. Its pages give way when others need the room, and come back when it is used."
        if request.state is RequestState.RUNNING:
            return "Its request runs."
        if obstacles and obstacles[0].code == "DEFERRED":  # for how long, the obstacle says
            return "Its request waits: a soft limit holds it back."
        return f"Its request waits: {obstacles[0].text}" if obstacles else "Its request waits for its turn: nothing else is in its way."

    def _obstacles(self, device: DeviceParts, context: Context, request: Request | None, outlook: Outlook | None) -> Iterator[Obstacle]:
        """What stands in the way of its request, the nearest first."""
        if request is None or outlook is None or request.state is RequestState.RUNNING:
            return
        machine = self._machine
        if not device.is_running and device.label:
            state = device.supervisor.state.value
            yield Obstacle("WORKER", f"the worker of {device.label} is {state}; it is started again.", device=device.label)
        for name in context.models:
            model = device.models.get(name) if name in device.models else None
            if model is None or not model.is_resident:
                yield Obstacle("MODEL", self._model_text(name, model))
        if request.is_parked:
            yield self._parked_obstacle(context)
        if request.place is Place.DEFERRED:
            seconds = max(request.defer_until - machine.clock(), 0.0)
            when = f"it joins the line in {seconds:.1f} s, or when nobody else is there."
            text = f"it is above a soft limit that holds for {request.tenant}: {when}"
            yield Obstacle("DEFERRED", text, owner=request.tenant)
        yield from self._limit_obstacles(request)
        yield from self._frame_obstacles(device, context, request)
        seats = device.config.kerneld.max_rows
        if device.scheduler.running.total >= seats:
            yield Obstacle("ROWS", f"all {seats} rows of the device are taken (kerneld.max_rows).")
        yield from self._queue_obstacles(outlook)

    @staticmethod
    def _queue_obstacles(outlook: Outlook) -> Iterator[Obstacle]:
        if outlook.position > 1 or outlook.tenant_position > 1:
            at_least = "at least " if outlook.is_position_least else ""
            place = f"{at_least}number {outlook.position} of all in line, and " if outlook.position else ""
            yield Obstacle("QUEUE", f"it is {place}number {outlook.tenant_position} in the line of {outlook.tenant}.")

    @staticmethod
    def _parked_obstacle(context: Context) -> Obstacle:
        """What a request waits for that is out of the line for a while."""
        num_far = sum(context.table.num_disk) if context.table is not None else 0
        if num_far:
            return Obstacle("FETCH", f"{num_far} of its pages are fetched from the disk.", "disk", context.tenant)
        return Obstacle("PREFIX", "another request computes the beginning that both share; it goes on from there.")

    def _limit_obstacles(self, request: Request) -> Iterator[Obstacle]:
        machine = self._machine
        for path in ancestors(request.tenant):
            most = machine.tenants.get(path).limits.max_running if path in machine.tenants else 0
            if most and machine.scheduler.running.of(path) >= most:
                yield Obstacle("RUNNING_LIMIT", f"{path} is at its limit of {most} running (max_running).", owner=path)

    def _frame_obstacles(self, device: DeviceParts, context: Context, request: Request) -> Iterator[Obstacle]:
        """Whether all its pages could be on the device now: within the limits of its tenant, and in what is free or may be reclaimed."""
        missing, ledger = missing_bytes(device, context, request.num_remaining), device.pager.ledger
        if not missing:
            return
        of_device = device.label or "the device"
        capped = ledger.exceeded(context.tenant, Tier.DEVICE, missing)
        if capped is not None:
            limit, used = ledger.limit(capped, Tier.DEVICE).limit_bytes, ledger.used(capped, Tier.DEVICE)
            held = _busy_bytes(device, capped, context)
            if held + missing > limit:
                uses = f"{capped} uses {size_text(used)} of its limit of {size_text(limit)}."
                text = f"it needs {size_text(missing)} more of {of_device}; {uses}"
                yield Obstacle("LIMIT", text, "device", capped, missing, max(limit - held, 0), limit, device.label)
                return
        available = _free_bytes(device) + reclaimable_bytes(device, Tier.DEVICE, context.tenant, context.table)
        if available < missing:
            text = f"it needs {size_text(missing)} more of {of_device}; {size_text(available)} are free or may be reclaimed."
            yield Obstacle("FRAMES", text, "device", "", missing, available, device=device.label)

    def _place(self, request: Request) -> QueuePlace:
        machine_wide = self._machine.scheduler
        scheduler = machine_wide.of(request)
        return QueuePlace(
            position=scheduler.queue_position(request),
            tenant_waiting=scheduler.waiting.of(request.tenant),
            waiting=scheduler.waiting.total,
            running=scheduler.running.total,
            service=machine_wide.shares.service(request.tenant) if request.tenant in machine_wide.shares else 0,
        )

    # ------------------------------------------------------------------------------------------------------------------ models

    def model(self, name: str, device_name: str = "") -> Explanation:
        """Why a model is where it is; with `device_name`, why it is not on that device. Raises: NotFound."""
        registered = self._machine.models.get(name)
        model = registered.on(device_name) if device_name else registered.main
        device = self._machine.devices.get(model.device)
        obstacles: tuple[Obstacle, ...] = ()
        remedies: tuple[Remedy, ...] = ()
        if not model.is_resident:
            obstacles, remedies = self._model_obstacles(device, device.residency.placement.needed_bytes(model, may_stream=device.streams))
        return Explanation(
            subject=f"model {model.name}",
            state=model.state.value,
            summary=self._model_text(name, model, _on_devices(registered) if device.label else ""),
            placements=tuple(self._model_placements(registered)),
            obstacles=obstacles,
            holders=tuple(self.holders(device, Tier.DEVICE)) if remedies or not model.is_resident else (),
            remedies=remedies,
        )

    def _model_placements(self, registered: Registered) -> Iterator[Placement]:
        for copy in registered.copies:
            device = self._machine.devices.get(copy.device)
            if copy.is_resident:
                yield Placement("device", model_bytes(device, copy), device=device.label)
            if copy.image:
                yield Placement("host", copy.size_bytes, device=device.label)

    def _model_text(self, name: str, model: Model | None, places: str = "") -> str:
        """`places`: the devices on which it is, where there are several."""
        if model is None:
            return f"the model {name!r} was removed."
        if model.state is ModelState.LOADING:
            progress, presence = model.progress, self._machine.devices.get(model.device).residency.presence
            if not presence.is_there:
                return f"the model {name!r} is loading: {presence.absence().text}"
            return (
                f"the model {name!r} is loading: {progress.stage}, {size_text(progress.bytes_done)} of {size_text(progress.bytes_total)}."
            )
        if model.state is ModelState.FAILED:
            return f"the model {name!r} could not be loaded: {model.failure}"
        if model.is_resident:
            return f"The model {name!r} is on {places or 'the device'}."
        return f"the model {name!r} is not loaded; `kernelctl model load` or the first request on it loads it."

    def _model_obstacles(self, device: DeviceParts, size_bytes: int) -> tuple[tuple[Obstacle, ...], tuple[Remedy, ...]]:
        """What a load of the model would find in its way."""
        ledger = device.pager.ledger
        snapshot = next(each for each in ledger.snapshot() if each.tier is Tier.DEVICE)
        available = snapshot.free_bytes + reclaimable_bytes(device, Tier.DEVICE, "")
        if not size_bytes or size_bytes <= available:
            return (), ()
        of_device = device.label or "the device"
        text = f"it needs {size_text(size_bytes)} of {of_device}; {size_text(available)} are free or may be reclaimed."
        obstacle = Obstacle("FRAMES", text, "device", "models", size_bytes, available, device=device.label)
        holders = ledger.holders(Tier.DEVICE)
        shortage: Shortage
        if size_bytes > snapshot.total_bytes:
            shortage = NeverFits("device", size_bytes, snapshot.total_bytes, holders)
        else:
            shortage = OutOfFrames("device", size_bytes, available, holders)
        return (obstacle,), tuple(self.remedies(device, shortage))

    # ------------------------------------------------------------------------------------------------------------------ both

    def remedies(self, device: DeviceParts, shortage: Shortage, tenant: str = "", model: str = "") -> list[Remedy]:
        """What would help, in words that the caller may read."""
        return remedies_of(device, shortage, Needer(tenant, model, 0, self._may_name))

    def holders(self, device: DeviceParts, tier: Tier) -> Iterator[Holding]:
        """The largest holders of a tier; those that are not the caller's to know without a name."""
        for holding in holdings_of(device, tier)[:MOST_HOLDERS]:
            context = self._machine.contexts.find(holding.name)
            is_named = context is None or self._may_name(context)
            name = holding.name if is_named else ""
            yield replace(holding, name=name)

    def _may_name(self, context: Context) -> bool:
        grants = context.grants.values()
        return may_see(self._caller.principal, context.owner, context.tenant, grants, self._machine.clock())


def _placements(device: DeviceParts, context: Context) -> Iterator[Placement]:
    table, num_known, num_lost = context.table, 0, 0
    if table is not None:
        for tier in Tier:
            if size_bytes := tier_bytes(table, tier):
                yield Placement(tier.name.lower(), size_bytes, sum(num_in(pages, tier) for pages in table.pages), device.label)
        num_known, num_lost = max(map(len, table.pages), default=0), table.counts().lost
    num_pages = -(-(context.num_tokens - 1) // device.pager.page_tokens)  # the last token is computed with those to come
    num_lost += max(num_pages - num_known, 0)
    if num_lost:
        yield Placement("nowhere", 0, num_lost)


def _busy_bytes(device: DeviceParts, path: str, but: Context) -> int:
    """Device bytes beneath a tenant that may not be reclaimed just now."""
    contexts = (each for each in device.own_contexts(path) if each is not but and is_busy(each))
    return sum(each.table.device_bytes for each in contexts if each.table is not None)


def _free_bytes(device: DeviceParts) -> int:
    return next(each.free_bytes for each in device.pager.ledger.snapshot() if each.tier is Tier.DEVICE)


def _shortage(device: DeviceParts, obstacles: list[Obstacle]) -> Shortage | None:
    """The error that a plan would fail with; it tells what would help."""
    ledger = device.pager.ledger
    for each in obstacles:
        if each.code == "LIMIT":
            used = ledger.used(each.owner, Tier.DEVICE)
            return OverLimit(each.owner, "device", each.needed_bytes, each.limit_bytes, used)
        if each.code == "FRAMES":
            return OutOfFrames("device", each.needed_bytes, each.available_bytes, ledger.holders(Tier.DEVICE))
    return None


def _on_devices(registered: Registered) -> str:
    return ", ".join(copy.device for copy in registered.copies if copy.is_resident)


def _ending_text(ended: Outlook) -> str:
    """How a request went, in a sentence."""
    preempted = f", was preempted {ended.num_preemptions} x" if ended.num_preemptions else ""
    detail = f" ({ended.detail.rstrip('.')})" if ended.detail else ""
    tokens = "1 token" if ended.output_tokens == 1 else f"{ended.output_tokens} tokens"
    return f"It ended: {ended.reason}{detail}. It waited {ended.queue_s:.1f} s{preempted}, and gave {tokens}."
