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

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._early: WorkerClient | None = None
        self._has_old_pages = False
        self._adopting: asyncio.Task[None] | None = None
        self._relieving: asyncio.Task[None] | None = None
        self._lost_at: float | None = None
        self._last_step_at = 0.0

    def furnish(self, machine: Machine) -> None:
        """Serve these parts."""
        self.machine = machine
        machine.dispatcher.on_crash = self._lost
        machine.dispatcher.on_progress = self._progressed
        machine.dispatcher.on_model_failed = machine.residency.fail
        machine.residency.bind(machine.dispatcher.make_room, machine.idle_slabs.have)
        machine.residency.on_change = self._residency_changed
        machine.residency.preempt = self._preempt
        machine.residency.turns.demand = self._demand
        machine.residency.turns.is_idle = self._is_idle
        machine.residency.turns.line.urgency = machine.scheduler.urgency
        machine.residency.debts.charge = machine.scheduler.shares.charge
        machine.residency.debts.on_charged, machine.residency.debts.on_payer = machine.usage.load_charged, machine.usage.load_payer
        machine.scheduler.charging.surcharge = machine.residency.debts.surcharge
        machine.dispatcher.composer.relieve = self._relieve
        machine.residency.parking.host = lambda: machine.host
        machine.residency.before_use = self._adopt_pages

    def open(self) -> None:
        """Recovery is done: a worker that came early may serve."""
        if self._early is not None:
            self._serve(self._early)
        self._early = None

    # ------------------------------------------------------------------------------------------------ as the landlord of the supervisor

    def admission(self, host_fd: int | None) -> Admission:
        """What a worker gets: the arena, and the host tier, which may be the one that it kept of an earlier front."""
        machine, memory, drivers = self.machine, self._config.memory, self._config.drivers
        is_kept = self._take_host_tier(host_fd)
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
            host_bytes=machine.host.size_bytes if machine.host is not None else 0,
            options=dict(drivers.options),
        )
        return Admission(machine.boot_generation, spec, None if machine.host is None or is_kept else machine.host.fd)

    def _take_host_tier(self, host_fd: int | None) -> bool:
        """Use the host tier that a worker kept, if we have none yet and it fits; else make one. Returns whether the worker has ours."""
        machine, memory = self.machine, self._config.memory
        size = memory.host_bytes // memory.slab_bytes * memory.slab_bytes
        is_kept = False
        if machine.host is None and host_fd is not None:
            with contextlib.suppress(HostTierInvalid):
                machine.host, host_fd = HostMemory(host_fd, size, memory.granule_bytes), None
                self._has_old_pages = is_kept = True
        elif machine.host is not None and host_fd is not None:
            is_kept = os.path.sameopenfile(machine.host.fd, host_fd)
        if host_fd is not None:
            os.close(host_fd)
        if machine.host is None and size:
            machine.host = HostMemory.create(size, memory.granule_bytes)
        if machine.host is not None:
            machine.host.boot_generation = machine.boot_generation
        return is_kept

    def running(self, worker: WorkerClient) -> None:
        """A worker is ready: run on it, as soon as there is something to run (rule 1)."""
        machine, hello = self.machine, worker.hello
        machine.events.publish(WorkerStarted(hello.device, hello.driver, hello.pid, machine.clock() - machine.started_at))
        if machine.is_recovered:
            self._serve(worker)
        else:
            self._early = worker

    async def _adopt_pages(self, device: Device) -> None:
        """Take over what an earlier front left, once; another device that comes meanwhile waits for it too. Raises: DeviceLost."""
        adopting = self._adopting
        if adopting is None or (adopting.done() and adopting.exception() is not None):
            work = Adoption(self.machine).run(device, has_old_host=self._has_old_pages)
            adopting = self._adopting = asyncio.get_running_loop().create_task(work, name="adopt pages")
        await asyncio.shield(adopting)

    async def close(self) -> None:
        """Wait for what reads and clears the tiers."""
        if self._adopting is not None:
            await asyncio.wait([self._adopting])

    def _serve(self, worker: WorkerClient) -> None:
        machine = self.machine
        machine.seating.meter.measured(worker.copies)
        machine.dispatcher.attach(worker, machine.boot_generation)
        machine.idle_slabs.attach(worker)
        machine.residency.attach(worker, worker.models)
        machine.dispatcher.pump()

    # -------------------------------------------------------------------------------------------------------------- what it is told of

    def _lost(self, reason: str) -> None:
        machine, supervisor = self.machine, self.machine.supervisor
        if supervisor.state is not WorkerState.STOPPED:  # else we told it to leave
            machine.events.publish(WorkerLost(supervisor.command.device, supervisor.pid, reason, machine.scheduler.waiting.total))
        machine.idle_slabs.detach()
        machine.residency.detach()
        self._lost_at = machine.clock()
        supervisor.lost(reason)

    def _progressed(self, num_prefill: int, num_output: int, compute_s: float) -> None:
        machine, now = self.machine, time.monotonic()
        machine.throughput.add(num_prefill, num_output, compute_s)
        self._metrics.observe_step(num_prefill, num_output, compute_s, min(now - self._last_step_at, MAX_TOKEN_GAP_S))
        self._last_step_at = now
        if self._lost_at is not None and num_output:
            restored = sum(request.pages_restored for request in machine.requests.values())
            recomputed = sum(request.pages_recomputed for request in machine.requests.values())
            seconds, self._lost_at = machine.clock() - self._lost_at, None
            device = machine.supervisor.command.device
            machine.events.publish(WorkerRecovered(device, seconds, machine.scheduler.running.total, restored, recomputed))

    def _demand(self, model: Model) -> int:
        """Requests that run on a model or wait for it."""
        return self.machine.demand[model.name]

    def _is_idle(self) -> bool:
        """Whether nothing runs, and nothing waits that could."""
        scheduler = self.machine.scheduler
        return not scheduler.running.total and scheduler.next_candidate() is None

    def _relieve(self, request: Request) -> bool:
        """Let the model or adapter that was not used for longest, and that nobody uses now, leave for the pages of a request."""
        if self._relieving is not None and not self._relieving.done():
            return True
        staying = self.machine.models.pinned().union(request.context.models)
        idle = [model for model in self.machine.models if model.is_resident and model.name not in staying and not self._demand(model)]
        if not idle:
            return False
        leaving = self._send_off(min(idle, key=lambda model: (model.last_used_at, model.name)))
        self._relieving = asyncio.get_running_loop().create_task(leaving, name="make room for pages")
        return True

    async def _send_off(self, model: Model) -> None:
        await self.machine.residency.evict(model)
        self.machine.dispatcher.room_made()

    def _preempt(self, model: Model) -> None:
        """A model leaves: the rows on it keep place and tokens, and wait until it is back."""
        machine = self.machine
        for row in [row for row in machine.dispatcher.composer.seats.rows if model.name in row.request.context.models]:
            machine.dispatcher.unseat(row.request)
            machine.delivery.preempted(row.request, "model")
        machine.dispatcher.room_made()

    def _residency_changed(self, model: Model) -> None:
        machine = self.machine
        machine.scheduler.set_resident(model.name, model.is_resident)
        machine.scheduler.sizer.costs.know(model.name, model.prefill_s)
        machine.dispatcher.deadline.stream_s = sum(each.stream_s for each in machine.models if each.is_resident)
        if model.state is ModelState.FAILED:
            told = f"The model {model.name!r} could not be loaded. {model.failure} `kernelctl explain {model.name}` tells more."
            for request in [request for request in machine.requests.values() if model.name in request.context.models]:
                machine.dispatcher.end(request, FinishReason.ERROR, told)
        machine.dispatcher.room_made()
