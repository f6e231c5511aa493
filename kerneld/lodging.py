"""Lodging: what a worker gets when it comes in, what it is put to, and what its death means to the other parts.

    comes in --admission--> gets its memory --running--> waits for recovery --> serves --lost--> its pages and weights are gone

Rules
1. A worker that is early waits: before recovery nobody knows which weights and pages of an earlier run are wanted.
2. There is one host tier in the life of a front. A worker that kept one of an earlier front brings it along, and keeps it: it is given
   none, which tells it to keep its driver and its weights as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

from drivers.client import Device, WorkerClient
from drivers.contract import OpenSpec
from drivers.errors import HostTierInvalid
from drivers.hostmem import HostMemory
from drivers.listener import Admission
from kerneld.adoption import Adoption
from kerneld.calls import FinishReason, ModelState
from kerneld.config import Config
from kerneld.context import priced_as
from kerneld.deviceparts import DeviceParts
from kerneld.events import WorkerLost, WorkerRecovered, WorkerStarted
from kerneld.machine import Machine
from kerneld.metrics import Metrics
from kerneld.models import Model
from kerneld.request import Request
from kerneld.supervisor import WorkerState

MAX_TOKEN_GAP_S = 10.0  # a longer pause is not between two tokens of anybody


class Lodging:
    """The landlord of the worker of one device."""

    machine: Machine
    parts: DeviceParts

    def __init__(self, config: Config, metrics: Metrics) -> None:
        """`config`: as it holds for the device."""
        self._config = config
        self._metrics = metrics
        self._early: WorkerClient | None = None
        self._has_old_pages = False
        self._adopting: asyncio.Task[None] | None = None
        self._relieving: asyncio.Task[None] | None = None
        self._lost_at: float | None = None
        self._last_step_at = 0.0

    def furnish(self, machine: Machine, parts: DeviceParts) -> None:
        """Serve these parts."""
        self.machine, self.parts = machine, parts
        dispatcher, residency = parts.dispatcher, parts.residency
        dispatcher.on_crash = self._lost
        dispatcher.on_progress = self._progressed
        dispatcher.on_model_failed = residency.fail
        residency.bind(dispatcher.make_room, parts.idle_slabs.have)
        residency.on_change = self._residency_changed
        residency.preempt = self._preempt
        residency.turns.demand = self._demand
        residency.turns.is_idle = self._is_idle
        residency.turns.line.urgency = parts.scheduler.urgency
        residency.debts.charge = machine.scheduler.shares.charge
        residency.debts.on_charged, residency.debts.on_payer = machine.usage.load_charged, machine.usage.load_payer
        dispatcher.composer.relieve = self._relieve
        residency.parking.host = lambda: parts.host
        residency.before_use = self._adopt_pages

    def open(self) -> None:
        """Recovery is done: a worker that came early may serve."""
        if self._early is not None:
            self._serve(self._early)
        self._early = None

    # ------------------------------------------------------------------------------------------------ as the landlord of the supervisor

    def admission(self, host_fd: int | None) -> Admission:
        """What a worker gets: the arena, and the host tier, which may be the one that it kept of an earlier front."""
        memory, drivers = self._config.memory, self._config.drivers
        is_kept = self._take_host_tier(host_fd)
        host = self.parts.host
        spec = OpenSpec(
            num_slabs=memory.device_bytes // memory.slab_bytes,
            slab_bytes=memory.slab_bytes,
            granule_bytes=memory.granule_bytes,
            page_tokens=memory.page_tokens,
            max_rows=self._config.kerneld.max_rows,
            max_step_tokens=self._config.kerneld.max_step_tokens,
            dtype=drivers.dtype,
            threads=drivers.threads,
            batch_invariant=drivers.batch_invariant,
            host_bytes=host.size_bytes if host is not None else 0,
            options=dict(drivers.options),
        )
        return Admission(self.machine.boot_generation, spec, None if host is None or is_kept else host.fd)

    def _take_host_tier(self, host_fd: int | None) -> bool:
        """Use the host tier that a worker kept, if we have none yet and it fits; else make one. Returns whether the worker has ours."""
        parts, memory = self.parts, self._config.memory
        size = memory.host_bytes // memory.slab_bytes * memory.slab_bytes
        is_kept = False
        if parts.host is None and host_fd is not None:
            with contextlib.suppress(HostTierInvalid):
                parts.host, host_fd = HostMemory(host_fd, size, memory.granule_bytes), None
                self._has_old_pages = is_kept = True
        elif parts.host is not None and host_fd is not None:
            is_kept = os.path.sameopenfile(parts.host.fd, host_fd)
        if host_fd is not None:
            os.close(host_fd)
        if parts.host is None and size:
            parts.host = HostMemory.create(size, memory.granule_bytes)
        if parts.host is not None:
            parts.host.boot_generation = self.machine.boot_generation
        return is_kept

    def running(self, worker: WorkerClient) -> None:
        """A worker is ready: run on it, as soon as there is something to run (rule 1)."""
        machine, hello = self.machine, worker.hello
        machine.events.publish(WorkerStarted(hello.device, hello.driver, hello.pid, time.monotonic() - self.parts.supervisor.awaited_since))
        if machine.is_recovered:
            self._serve(worker)
        else:
            self._early = worker

    async def _adopt_pages(self, device: Device) -> None:
        """Take over what an earlier front left, once; another device that comes meanwhile waits for it too. Raises: DeviceLost."""
        adopting = self._adopting
        if adopting is None or (adopting.done() and adopting.exception() is not None):
            work = Adoption(self.machine, self.parts).run(device, has_old_host=self._has_old_pages)
            adopting = self._adopting = asyncio.get_running_loop().create_task(work, name="adopt pages")
        await asyncio.shield(adopting)

    async def close(self) -> None:
        """Wait for what reads and clears the tiers."""
        if self._adopting is not None:
            await asyncio.wait([self._adopting])

    def _serve(self, worker: WorkerClient) -> None:
        parts, boot_generation = self.parts, self.machine.boot_generation
        parts.seating.meter.measured(worker.copies)
        parts.dispatcher.attach(worker, boot_generation)
        parts.idle_slabs.attach(worker)
        parts.residency.attach(worker, worker.models)
        parts.dispatcher.pump()

    # -------------------------------------------------------------------------------------------------------------- what it is told of

    def _lost(self, reason: str) -> None:
        parts, supervisor = self.parts, self.parts.supervisor
        if supervisor.state is not WorkerState.STOPPED:  # else we told it to leave
            self.machine.events.publish(WorkerLost(parts.name, supervisor.pid, reason, parts.scheduler.waiting.total))
        parts.idle_slabs.detach()
        parts.residency.detach()
        self._lost_at = self.machine.clock()
        supervisor.lost(reason)

    def _progressed(self, num_prefill: int, num_output: int, compute_s: float) -> None:
        machine, now = self.machine, time.monotonic()
        self.parts.throughput.add(num_prefill, num_output, compute_s)
        self._metrics.observe_step(num_prefill, num_output, compute_s, min(now - self._last_step_at, MAX_TOKEN_GAP_S))
        self._last_step_at = now
        if self._lost_at is not None and num_output:
            mine = [request for request in machine.requests.values() if machine.devices.of(request.context) is self.parts]
            restored = sum(request.pages_restored for request in mine)
            recomputed = sum(request.pages_recomputed for request in mine)
            seconds, self._lost_at = machine.clock() - self._lost_at, None
            num_running = self.parts.scheduler.running.total
            machine.events.publish(WorkerRecovered(self.parts.name, seconds, num_running, restored, recomputed))

    def _demand(self, model: Model) -> int:
        """Requests that run on a model or wait for it."""
        return self.parts.demand[model.name]

    def _is_idle(self) -> bool:
        """Whether nothing runs, and nothing waits that could."""
        scheduler = self.parts.scheduler
        return not scheduler.running.total and scheduler.next_candidate() is None

    def _relieve(self, request: Request) -> bool:
        """Let the model or adapter that was not used for longest, and that nobody uses now, leave for the pages of a request."""
        if self._relieving is not None and not self._relieving.done():
            return True
        models = self.parts.models
        staying = models.pinned().union(request.context.models)
        idle = [model for model in models if model.is_resident and model.name not in staying and not self._demand(model)]
        if not idle:
            return False
        leaving = self._send_off(min(idle, key=lambda model: (model.last_used_at, model.name)))
        self._relieving = asyncio.get_running_loop().create_task(leaving, name="make room for pages")
        return True

    async def _send_off(self, model: Model) -> None:
        await self.parts.residency.evict(model)
        self.parts.dispatcher.room_made()

    def _preempt(self, model: Model) -> None:
        """A model leaves: the rows on it keep place and tokens, and wait until it is back."""
        parts = self.parts
        for row in [row for row in parts.dispatcher.composer.seats.rows if model.name in row.request.context.models]:
            parts.dispatcher.unseat(row.request)
            parts.delivery.preempted(row.request, "model")
        parts.dispatcher.room_made()

    def _residency_changed(self, model: Model) -> None:
        machine, parts = self.machine, self.parts
        parts.scheduler.set_resident(model.name, model.is_resident)
        parts.scheduler.sizer.costs.know(priced_as(model.name, parts.label), model.prefill_s)
        parts.dispatcher.deadline.stream_s = sum(each.stream_s for each in parts.models if each.is_resident)
        if model.state is ModelState.FAILED:
            told = f"The model {model.name!r} could not be loaded. {model.failure} `kernelctl explain {model.name}` tells more."
            on_model = [request for request in machine.requests.values() if model.name in request.context.models]
            for request in [request for request in on_model if machine.devices.of(request.context) is parts]:
                parts.dispatcher.end(request, FinishReason.ERROR, told)
        parts.dispatcher.room_made()
