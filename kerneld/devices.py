"""Devices: the parts of all devices of a daemon, by name; and as whom workers find them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from drivers.client import WorkerClient
from drivers.errors import DriverError, DriverUnavailable
from drivers.listener import Admission
from drivers.wire import Hello
from kerneld.context import Context
from kerneld.deviceparts import DeviceParts
from kerneld.errors import NotFound
from memory.page import Tier


class Devices:
    """In the order in which they are configured. As the reception of workers, each goes to the supervisor of its device."""

    def __init__(self, parts: Iterable[DeviceParts]) -> None:
        self._parts = {each.name: each for each in parts}
        self.first = next(iter(self._parts.values()))

    def __iter__(self) -> Iterator[DeviceParts]:
        return iter(self._parts.values())

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, name: str) -> DeviceParts:
        """The device of that name. Raises: NotFound."""
        found = self._parts.get(name)
        if found is None:
            raise NotFound("device", name, f"There are: {', '.join(self._parts)}.")
        return found

    def of(self, context: Context) -> DeviceParts:
        """The device where a context's pages are, and where it runs; the first, for one that is nowhere yet."""
        return self._parts.get(context.device, self.first)

    def used(self, path: str, tier: Tier) -> int:
        """Bytes that a tenant and those beneath it use of a tier, on all devices."""
        return sum(each.pager.ledger.used(path, tier) for each in self)

    # ------------------------------------------------------------------------------------------------ as the reception of the listener

    def admit(self, hello: Hello, host_fd: int | None) -> Admission:
        """A worker came in. Raises: DriverError, if there is no such device, or it has another driver, or a worker."""
        if hello.device not in self._parts:
            if host_fd is not None:
                os.close(host_fd)
            known = ", ".join(f"{each.supervisor.command.driver} on {each.name}" for each in self)
            raise DriverUnavailable(f"This front runs {known}.")
        return self._parts[hello.device].supervisor.admit(hello, host_fd)

    def ready(self, worker: WorkerClient) -> None:
        """A worker that was admitted is open."""
        self._parts[worker.hello.device].supervisor.ready(worker)

    def failed(self, hello: Hello, error: DriverError) -> None:
        """A worker that was admitted did not become ready."""
        self._parts[hello.device].supervisor.failed(hello, error)
