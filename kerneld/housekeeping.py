"""Housekeeping: what has to happen now and then: deadlines, deserted requests, accounts, compaction, a look at the books, the watchdog.

It runs on the event loop beside the dispatcher, so that feeding systemd's watchdog from here proves that the loop turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from kerneld.calls import FinishReason, ModelState
from kerneld.deviceparts import DeviceParts
from kerneld.errors import KernelError
from kerneld.events import IntegrityLost, ShareFactorsChanged
from kerneld.machine import Machine
from kerneld.notify import Notifier
from kerneld.state.replay import EFFECT_LIFETIME_S, compacted
from memory.errors import PagingError

logger = logging.getLogger(__name__)

TICK_S = 0.25
ACCOUNTS_S = 1.0
USAGE_S = 15.0
INTEGRITY_S = 30.0


class Housekeeping:
    """The daemon's periodic duties."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tasks: list[asyncio.Task[None]] = []
        self._watchdog_s = Notifier().watchdog_interval_s
        self._duties: list[tuple[float, Callable[[], None]]] = [
            (TICK_S, self._end_late),
            (TICK_S, self._apply_limits),
            (TICK_S, self._reclaim),
            (ACCOUNTS_S, self._journal_counters),
            (ACCOUNTS_S, self._give_back),
            *((ACCOUNTS_S, starts.tick) for starts in {machine.starts, *(device.starts for device in machine.devices)}),
            (ACCOUNTS_S, machine.usage.sample),
            (machine.config.kerneld.share_update_s, self.update_factors),
            (ACCOUNTS_S, self._machine.calibration.look),
        ]
        if self._watchdog_s is not None:
            self._duties.append((self._watchdog_s, Notifier().alive))

    def start(self) -> None:
        """Begin to keep house."""
        for work in (self._run(), self._watch_books()):
            task = asyncio.get_running_loop().create_task(work, name="housekeeping")
            task.add_done_callback(_report)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Do the accounts a last time, and stop."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.close_accounts()

    async def close_accounts(self) -> None:
        """Write down what was used, and what it cost: all that is known now."""
        self._machine.usage.sample()
        self._journal_counters()
        await self._write_usage()

    async def _run(self) -> None:
        due = {idx: time.monotonic() + interval_s for idx, (interval_s, _duty) in enumerate(self._duties)}
        usage_due = time.monotonic() + USAGE_S
        while True:
            now = time.monotonic()
            for idx, (interval_s, duty) in enumerate(self._duties):
                if now >= due[idx]:
                    due[idx] = now + interval_s
                    duty()
            if now >= usage_due:
                usage_due = now + USAGE_S
                await self._write_usage()
                await self._compact()
                await self._forget_old()
            await asyncio.sleep(min(TICK_S, self._watchdog_s or TICK_S))

    def _give_back(self) -> None:
        """Let the device have what nobody needs while there is nothing to do."""
        for device in self._machine.devices:
            is_loading = any(model.state is ModelState.LOADING for model in device.models)
            device.idle_slabs.tick(is_idle=device.dispatcher.is_idle and not device.num_requests and not is_loading)

    async def _watch_books(self) -> None:
        while True:
            await asyncio.sleep(INTEGRITY_S)
            await self.check_integrity()

    # -------------------------------------------------------------------------------------------------------------------------- duties

    def _end_late(self) -> None:
        """End requests that ran out of time or that nobody reads any more; deferred ones join the line when their time has come."""
        machine = self._machine
        steady = time.monotonic() if machine.clock is time.time else None  # no other clock jumps
        for request, detail in machine.scheduler.expired(machine.clock(), steady):
            machine.end(request, FinishReason.DEADLINE, detail)
        if machine.scheduler.undefer(machine.clock()):
            machine.arrived()
        for request in [request for request in machine.requests.values() if request.is_abandoned() and not request.is_scoring]:
            machine.end(request, FinishReason.CANCELLED, "Nobody read the stream any more.")

    def _apply_limits(self) -> None:
        """See whether limits that were set below use have taken hold, and have more reclaimed if not."""
        machine = self._machine
        if machine.limits.is_waiting:
            for device in machine.devices:
                device.dispatcher.pump()
            machine.limits.look()

    def _reclaim(self) -> None:
        """Keep room in the host tiers."""
        for device in self._machine.devices:
            if device.disk_tier is not None:
                device.disk_tier.reclaimer.turn()
            device.residency.parking.relieve(self._machine.clock())

    def _journal_counters(self) -> None:
        """Write down what changed of the scheduler's books, if nothing was written since that they could go along with."""
        self._machine.books.flush()

    def update_factors(self) -> None:
        """Let what was used of late change the weights, and tell if it did."""
        machine = self._machine
        before = machine.starts.map(0.0).nodes
        machine.usage.update_factors()
        after = machine.starts.map(0.0).nodes.items()
        factors = [node.factor_milli for path, node in after if path in before and node.factor_milli != before[path].factor_milli]
        if factors:
            machine.events.publish(ShareFactorsChanged(len(factors), min(factors), max(factors)))

    async def check_integrity(self) -> None:
        """Look whether the books of devices on which nothing runs agree, a slice at a time: whoever comes waits for one slice at most."""
        for device in self._machine.devices:
            try:
                await _check_books(device)
            except PagingError as problem:
                self._machine.events.publish(IntegrityLost(f"pager of {device.label}" if device.label else "pager", str(problem)))

    async def _write_usage(self) -> None:
        machine = self._machine
        try:
            await machine.usage.write(machine.store.usage)
        except KernelError:
            logger.warning("usage could not be written", exc_info=True)
        try:
            await machine.authenticator.flush()
        except KernelError:
            logger.warning("last uses of tokens could not be written", exc_info=True)

    async def _compact(self) -> None:
        """Shorten the journal when it has grown."""
        journal, now = self._machine.journal, self._machine.clock()
        if not journal.needs_compaction:
            return
        try:
            await journal.compact(lambda records: compacted(records, now))
        except KernelError:
            logger.warning("the journal could not be compacted", exc_info=True)

    async def _forget_old(self) -> None:
        """Drop answers that are older than a day from the database, the journal's go with its compaction; and hours of usage."""
        try:
            await self._machine.store.forget_effects(self._machine.clock() - EFFECT_LIFETIME_S)
            await self._machine.usage.forget_old(self._machine.store.usage)
        except KernelError:
            logger.warning("old effects and usage could not be dropped", exc_info=True)


async def _check_books(device: DeviceParts) -> None:
    """Check them until something runs. Raises: PagingError."""
    if device.dispatcher.is_idle:
        for _ in device.pager.integrity_steps():
            await asyncio.sleep(0)
            if not device.dispatcher.is_idle:
                return


def _report(task: asyncio.Task[None]) -> None:
    """Housekeeping ends when it is cancelled, and else by a bug: then the watchdog is fed no more, and the log says why."""
    if not task.cancelled() and (problem := task.exception()) is not None:
        logger.critical("housekeeping ended", exc_info=problem)
