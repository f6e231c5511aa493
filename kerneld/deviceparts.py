"""The live parts of one device: its memory, its worker, its models, its line of requests, its loop.

A daemon has one of these for each device. What they have in common (tenants, contexts, journal, accounts) is the machine's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from drivers.hostmem import HostMemory
from kerneld.config import Config
from kerneld.context import Context
from kerneld.contexts import ContextTable
from kerneld.delivery import Delivery
from kerneld.disk.tier import DiskTier
from kerneld.dispatcher import Dispatcher
from kerneld.idleslabs import IdleSlabs
from kerneld.models import ModelTable
from kerneld.pins import Pins
from kerneld.scheduler import Scheduler
from kerneld.seating import Seating
from kerneld.starts import Starts
from kerneld.supervisor import Supervisor, WorkerState
from kerneld.throughput import Throughput
from kerneld.weights.residency import Residency
from memory.pager import Pager


@dataclass(slots=True, eq=False)
class DeviceParts:
    """One device of a running daemon."""

    name: str
    label: str  # what is written down for it: its name; empty if it is the only one
    config: Config  # as it holds for this device
    contexts: ContextTable  # those of all devices
    models: ModelTable  # its copies
    pager: Pager
    scheduler: Scheduler
    seating: Seating
    delivery: Delivery
    dispatcher: Dispatcher
    residency: Residency
    supervisor: Supervisor
    disk_tier: DiskTier | None
    throughput: Throughput
    starts: Starts
    idle_slabs: IdleSlabs
    host: HostMemory | None = None
    demand: Counter[str] = field(default_factory=Counter)  # unfinished requests on each model and adapter, by name
    pins: Pins = field(init=False)

    def __post_init__(self) -> None:
        self.pins = Pins(self.pager, self.own_contexts, self.models, self.config.memory.device_bytes)

    @property
    def shown_name(self) -> str:
        """The name by which models are said to be on it: that of its driver, if it is the only device."""
        return self.label or self.config.drivers.use

    @property
    def is_running(self) -> bool:
        """Whether its worker is there."""
        return self.supervisor.state is WorkerState.RUNNING

    @property
    def streams(self) -> bool:
        """Whether its worker is there, and streams what is larger than the device."""
        return self.supervisor.client is not None and self.supervisor.client.capabilities.streams

    @property
    def num_requests(self) -> int:
        """Requests that wait for it or run on it."""
        return self.scheduler.waiting.total + self.scheduler.running.total

    def own_contexts(self, path: str = "") -> list[Context]:
        """The contexts that are on it; with `path`, those of that tenant and beneath it."""
        contexts = self.contexts.of_tenant(path) if path else self.contexts
        return [context for context in contexts if context.device == self.label]
