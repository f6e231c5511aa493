"""A device that does nothing until somebody waits, and then in any order that its streams allow.

Work is kept in the queues of its streams. When the host waits for an event, queues are worked off, each time from a stream that a seeded
generator picks among those that may go on, until that event has passed; the rest stays undone. So whatever the driver forgot to wait for,
or changed while it was still to be read, comes out wrong sooner or later. Memory that is taken is full of garbage.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from drivers.arena import Arena
from drivers.cuda.runtime import DeviceArena, DeviceFacts, Event, Work
from drivers.triton.table import DEFINITIONS, KernelTable

GARBAGE = 0x7E  # bytes of which make large floats, and ids out of bounds


@dataclass
class LateEvent:
    """See `drivers.cuda.runtime.Event`."""

    device: LateRuntime
    passed_at: float = 0.0

    def wait(self) -> None:
        """Let work happen until this has passed."""
        self.device.work_until(self)

    def seconds_since(self, earlier: Event) -> float:
        """Time between."""
        assert isinstance(earlier, LateEvent)
        assert self.passed_at, "nobody waited for this event"
        assert earlier.passed_at, "nobody waited for the earlier event"
        return self.passed_at - earlier.passed_at


@dataclass
class LateStream:
    """See `drivers.cuda.runtime.Stream`."""

    device: LateRuntime
    queue: deque[Work | LateEvent | tuple[LateEvent]] = field(default_factory=deque)

    def run(self, work: Work) -> None:
        """Keep work back."""
        with self.device.lock:
            self.queue.append(work)

    def record(self) -> LateEvent:
        """A point in the queue."""
        event = LateEvent(self.device)
        with self.device.lock:
            self.queue.append(event)
        return event

    def after(self, event: Event) -> None:
        """Go no further before that event."""
        assert isinstance(event, LateEvent)
        with self.device.lock:
            self.queue.append((event,))

    def can_go_on(self) -> bool:
        """Whether the head of the queue may happen."""
        return bool(self.queue) and not (isinstance(self.queue[0], tuple) and not self.queue[0][0].passed_at)

    def go_on(self) -> None:
        """Let the head of the queue happen."""
        head = self.queue.popleft()
        if isinstance(head, LateEvent):
            head.passed_at = time.perf_counter()
        elif not isinstance(head, tuple):
            with torch.inference_mode():
                head()


class LateRuntime:
    """See `drivers.cuda.runtime.Runtime`. `kernels` are their definitions, or the interpreter's."""

    def __init__(self, seed: int = 0, kernels: KernelTable = DEFINITIONS, memory_bytes: int = 1 << 34) -> None:
        torch.set_num_threads(1)  # what runs is small
        self.lock = threading.RLock()
        self.device = torch.device("cpu")
        self.kernels = kernels
        self.compute = LateStream(self)
        self.copies = LateStream(self)
        self.pinned_spans: list[int] = []
        self.num_captured = 0
        self._memory_bytes = memory_bytes
        self._random = random.Random(seed)
        self._arenas: list[Arena] = []

    def facts(self) -> DeviceFacts:
        """A device that has everything."""
        return DeviceFacts("a device that is not there", self._memory_bytes, has_fp8=True, gives_back=True)

    def arena(self, num_slabs: int, slab_bytes: int) -> DeviceArena:
        """Ordinary memory, full of garbage."""
        arena = Arena(num_slabs * slab_bytes, 64, slab_bytes)
        arena.bytes.fill_(GARBAGE)
        self._arenas.append(arena)
        return DeviceArena(arena.bytes, arena.memory)

    def pinned(self, size_bytes: int) -> Tensor:
        """Ordinary memory, full of garbage."""
        return torch.full((size_bytes,), GARBAGE, dtype=torch.uint8)

    def pin(self, memory: memoryview) -> None:
        """Note it."""
        assert memory.nbytes > 0, "registering nothing is an error that surfaces later"
        self.pinned_spans.append(memory.nbytes)

    def unpin(self, memory: memoryview) -> None:
        """Note it."""
        self.pinned_spans.remove(memory.nbytes)

    def sent(self, values: np.ndarray) -> Tensor:
        """The values as they are when the work happens."""
        return torch.from_numpy(values.copy())

    def capture(self, work: Work) -> Work:
        """Nothing to record."""
        self.num_captured += 1
        return work

    def close(self) -> None:
        """Let everything happen, and forget the memory."""
        self.compute.record().wait()
        self.copies.record().wait()
        for arena in self._arenas:
            arena.close()
        self._arenas.clear()

    def whole(self) -> Tensor:
        """The last arena that was taken, when everything has happened."""
        self.compute.record().wait()
        self.copies.record().wait()
        return self._arenas[-1].bytes

    def work_until(self, event: LateEvent) -> None:
        """Let work happen, in some order, until an event has passed."""
        with self.lock:
            while not event.passed_at:
                ready = [stream for stream in (self.compute, self.copies) if stream.can_go_on()]
                assert ready, "streams wait for each other for ever"
                self._random.choice(ready).go_on()
            for _ in range(self._random.randrange(4)):  # the device does not stop because somebody is content
                ready = [stream for stream in (self.compute, self.copies) if stream.can_go_on()]
                if ready:
                    self._random.choice(ready).go_on()


def late_runtimes(seed: int, kernels: KernelTable = DEFINITIONS) -> Callable[[int], LateRuntime]:
    """Makes devices, each with another order."""
    seeds = iter(range(seed, seed + 1_000_000))
    return lambda _device: LateRuntime(next(seeds), kernels)
