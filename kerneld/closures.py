"""Closures: which tenants are closed in the accounts, because they are at a limit, and when they open again.

A closed tenant neither stops the line nor is served, and nothing below it is. A request that lost its row through no decision counts as
one that runs: the row is its own, so what waits behind the limit does not wake up for a moment.

Where there are several devices, each has accounts, and closures, of its own. How many requests of a tenant run is counted over all of them;
memory is that of one device.
"""

from __future__ import annotations

from kerneld.fairshare import FairShare
from kerneld.tally import Tally, ancestors


class Closures:
    """Limits of running requests, and tenants that wait for memory of their own."""

    def __init__(self, shares: FairShare, peers: list[Closures] | None = None) -> None:
        """`peers`: those of the devices that were made before, to which this one is added."""
        self._shares = shares
        self._peers = [] if peers is None else peers
        self._rows: Tally = self._peers[0]._rows if self._peers else Tally()  # requests that run, or are to run on, wherever that is
        self._peers.append(self)
        self._max_running: dict[str, int] = {}
        # Tenants that wait for memory of their own, in an order that a run repeats: it decides who is lifted to whom.
        self._held_back: dict[str, None] = {}

    def set_max_running(self, path: str, limit: int) -> None:
        """How many requests of a tenant, and of all below it, may run at once; 0: any number. Raises: NotFound."""
        self._max_running[path] = limit
        self._shares.set_open(path, self._has_room(path))

    def hold_back(self, path: str) -> None:
        """A tenant is at its limit of memory: it is closed until `let_in`. Raises: NotFound."""
        self._held_back[path] = None
        self._shares.set_open(path, False)

    def let_in(self) -> None:
        """Memory was given up: tenants that were held back may be next again."""
        if not self._held_back:
            return
        held_back, self._held_back = self._held_back, {}
        for path in held_back:
            if path in self._shares:
                self._shares.set_open(path, self._has_room(path))

    def admitted(self, tenant: str) -> None:
        """A request of a tenant runs: those that are at their limit now close."""
        self._rows.add(tenant)
        for peer in self._peers:
            for path in ancestors(tenant):
                if not peer._has_room(path):
                    peer._shares.set_open(path, False)

    def left(self, tenant: str) -> None:
        """A request of a tenant runs no more: those that were at their limit open."""
        self._rows.remove(tenant)
        for peer in self._peers:
            for path in ancestors(tenant):
                if path in peer._max_running and path in peer._shares:
                    peer._shares.set_open(path, peer._has_room(path))

    def is_open(self, tenant: str) -> bool:
        """Whether neither a tenant nor anybody above it is closed."""
        return all(self._has_room(path) for path in ancestors(tenant))

    def may_run_on(self, tenant: str) -> bool:
        """Whether a request that lost its row through no decision may have it again: its tenant does not wait for memory."""
        return not any(path in self._held_back for path in ancestors(tenant))

    def forget(self, path: str) -> None:
        """A tenant is gone."""
        self._max_running.pop(path, None)
        self._held_back.pop(path, None)

    def _has_room(self, path: str) -> bool:
        limit = self._max_running.get(path, 0)
        return path not in self._held_back and (not limit or self._rows.of(path) < limit)
