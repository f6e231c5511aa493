"""The daemon: builds the parts, starts them in order, keeps house while they run, and stops them in order.

    start   state directory (locked) -> database -> journal -> parts -> worker listener -> worker -> recovery -> READY
    stop    no new requests -> running ones end, or wait for the next start -> worker -> accounts -> journal -> database -> directory

`cli.serve` puts the system calls on top and owns the signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from drivers.listener import WorkerListener
from kerneld.assembly import Assembly
from kerneld.config import Config
from kerneld.deviceconfig import config_by_device
from kerneld.disk.pagefile import PageFile
from kerneld.events import DaemonReady, DaemonStarted, DaemonStopped
from kerneld.housekeeping import Housekeeping
from kerneld.kernel import Kernel
from kerneld.machine import Machine
from kerneld.metrics import Metrics
from kerneld.readings import gauges_of
from kerneld.recovery import recover
from kerneld.state.directory import StateDirectory
from kerneld.state.journal import Journal
from kerneld.state.replay import LogState
from kerneld.state.store import Store
from kerneld.verbs.admin import drain_requests

logger = logging.getLogger(__name__)

VERSION = "0.1.0"


class Daemon:
    """One running kerneld without its system calls. Make it, `start` it, `stop` it; all on one event loop."""

    machine: Machine
    kernel: Kernel

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix seconds: what deadlines and graces are told by."""
        self.config = config
        self.stop_wanted = asyncio.Event()
        self._directory: StateDirectory
        self._listener: WorkerListener
        self._housekeeping: Housekeeping
        self.metrics = Metrics(lambda: gauges_of(self.machine))
        self._assembly = Assembly(config, clock, self.metrics, self.stop_wanted.set)

    # -------------------------------------------------------------------------------------------------------------------- start, stop

    async def start(self) -> None:
        """Become what the last front was. Raises: KernelError, if the state directory cannot be used; then nothing is left running."""
        async with contextlib.AsyncExitStack() as undo:
            state_dir = self.config.kerneld.state_dir
            self._directory = await asyncio.to_thread(StateDirectory.open, state_dir)
            undo.callback(self._directory.close)
            store = await asyncio.to_thread(Store.open, f"sqlite:///{self._directory.database}")
            undo.push_async_callback(store.close)
            journal = Journal(self._directory.journal, segment_bytes=self.config.kerneld.journal_segment_bytes)
            undo.callback(journal.close)
            state = await asyncio.to_thread(lambda: LogState.fold(journal.replay()))
            page_files: dict[str, PageFile] = {}
            undo.callback(_close_all, page_files)
            await asyncio.to_thread(self._open_page_files, page_files)
            self.machine = self._assembly.build(self._directory, store, journal, page_files, await store.begin_boot())
            self.kernel = Kernel(self.machine)
            self._listener = WorkerListener(self.config.kerneld.worker_socket, self.machine.devices)
            self._listener.start()
            undo.push_async_callback(self._listener.close)
            for device in self.machine.devices:
                device.supervisor.start()
                undo.push_async_callback(device.supervisor.stop)
            self.machine.events.publish(DaemonStarted(self.machine.boot_generation, VERSION))
            await self.machine.authenticator.load()
            num_contexts, num_requests = await recover(self.machine, state)
            for request in self.machine.requests.values():
                self.machine.starts_of(request).arrived(request)
            for lodging in self._assembly.lodgings:
                lodging.open()
            self._housekeeping = Housekeeping(self.machine)
            self._housekeeping.start()
            self.machine.events.publish(DaemonReady(num_contexts, num_requests))
            undo.pop_all()

    async def stop(self) -> None:
        """End in order: what runs may finish within `drain_timeout_s`; what does not goes on at the next start."""
        machine = self.machine
        if not machine.is_draining:
            await drain_requests(machine, self.config.kerneld.drain_timeout_s)
        async with contextlib.AsyncExitStack() as steps:  # the last one goes first, and one that fails keeps no other from its turn
            steps.callback(self._directory.close)
            for device in machine.devices:
                if device.host is not None:
                    steps.callback(device.host.close)
                if device.disk_tier is not None:
                    steps.callback(device.disk_tier.file.close)
            steps.callback(machine.journal.close)
            steps.push_async_callback(machine.store.close)
            steps.push_async_callback(self._housekeeping.close_accounts)  # of what ended while the others stopped
            steps.push_async_callback(machine.authenticator.close)
            steps.push_async_callback(machine.renderer.close)
            for device, lodging in zip(machine.devices, self._assembly.lodgings, strict=True):
                steps.push_async_callback(device.delivery.close)
                steps.push_async_callback(lodging.close)
                if device.disk_tier is not None:
                    steps.push_async_callback(device.disk_tier.close)
                steps.callback(device.residency.detach)
            steps.push_async_callback(self._stop_workers)
            steps.push_async_callback(self._listener.close)
            steps.push_async_callback(self._housekeeping.stop)
        machine.events.publish(DaemonStopped(len(machine.requests)))

    @property
    def audit_folder(self) -> Path:
        """Where the audit log lies."""
        return self._directory.audit

    async def _stop_workers(self) -> None:
        """All at once: each may take its time."""
        await asyncio.gather(*(device.supervisor.stop() for device in self.machine.devices))

    def _open_page_files(self, opened: dict[str, PageFile]) -> None:
        """Open the page file of each device that has a disk tier."""
        for name, config in config_by_device(self.config).items():
            memory = config.memory
            num_slabs = memory.page_file_bytes // memory.slab_bytes
            if num_slabs:
                path = config.kerneld.page_file or self._directory.path / "pages"
                opened[name] = PageFile.open(path, num_slabs * memory.slab_bytes, memory.granule_bytes, memory.slab_bytes)


def _close_all(page_files: dict[str, PageFile]) -> None:
    for page_file in page_files.values():
        page_file.close()
