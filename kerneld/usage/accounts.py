"""UsageAccounts: what was used since it was written down, by tenant and hour, and what every living tenant has used in all.

    of(path) -> amounts of this hour, added to in place         take -> written in one transaction, every 15 s; or put_back

Invariants
1. What was used is in exactly one of: the amounts not written, a batch that was taken, the database.
2. The totals of a tenant are those that the database has, and what is not written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kerneld.calls import Usage
from kerneld.state.tables import UsageRow
from kerneld.usage.amounts import SYSTEM, Amounts, Bucket, hour_of

_Life = tuple[str, float]  # a tenant's path, and when it was added


class UsageAccounts:
    """Counts what tenants use. `clock` gives Unix seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lives: dict[str, _Life] = {SYSTEM: (SYSTEM, 0.0)}
        self._unwritten: dict[_Life, dict[int, Amounts]] = {}
        self._totals: dict[str, UsageRow] = {}  # as the database has them, or will when what was taken is written

    def __iter__(self) -> Iterator[str]:
        return iter([path for path in self._lives if path != SYSTEM])

    def know(self, path: str, born: float) -> None:
        """A tenant is there; one that is known stays as it is."""
        self._lives.setdefault(path, (path, born))

    def forget(self, path: str) -> None:
        """A tenant was removed. What it used is still written; its totals are gone, and the next one of its name begins at zero."""
        self._lives.pop(path, None)
        self._totals.pop(path, None)

    def born(self, path: str) -> float | None:
        """When a living tenant was added."""
        life = self._lives.get(path)
        return life[1] if life is not None else None

    def restore(self, totals: Mapping[str, UsageRow]) -> None:
        """Take over what the database has of living tenants."""
        self._totals = {path: row for path, row in totals.items() if path in self._lives}

    # ------------------------------------------------------------------------------------------------------------------ counting

    def of(self, path: str) -> Amounts:
        """What a tenant used in this hour and is not written, to be added to; that of `SYSTEM`, where there is no such tenant."""
        hours = self._unwritten.setdefault(self._lives.get(path) or self._lives[SYSTEM], {})
        hour = hour_of(self._clock())
        found = hours.get(hour)
        if found is None:
            found = hours[hour] = Amounts()
        return found

    def note_request(self, path: str, usage: Usage) -> None:
        """A request of a tenant ended."""
        amounts = self.of(path)
        amounts.requests += 1
        amounts.input_tokens += usage.input_tokens
        amounts.cached_tokens += usage.cached_tokens
        amounts.output_tokens += usage.output_tokens

    def totals(self, path: str) -> UsageRow:
        """Tokens that a living tenant has used, ever; `service` is that of its account when it was looked at last."""
        before, sum_of = self._totals.get(path, UsageRow()), Amounts()
        for amounts in self._unwritten.get(self._lives.get(path, (path, 0.0)), {}).values():
            sum_of.add(amounts)
        return UsageRow(before.input_tokens + sum_of.input_tokens, before.output_tokens + sum_of.output_tokens, before.service)

    def note_service(self, path: str, service: int) -> int:
        """The account of a living tenant shows this much service; returns how much more that is than when it was looked at last."""
        before = self._totals.get(path, UsageRow())
        if service != before.service:
            self._totals[path] = UsageRow(before.input_tokens, before.output_tokens, service)
            self.of(path).service_us += service - before.service
        return service - before.service

    def begin_service(self, path: str, service: int) -> None:
        """After a restart: an account that shows less than what was written has lost something, and counts from what it shows."""
        before = self._totals.get(path, UsageRow())
        if service < before.service:
            self._totals[path] = UsageRow(before.input_tokens, before.output_tokens, service)

    # ------------------------------------------------------------------------------------------------------------------- writing

    def unwritten(self) -> dict[Bucket, Amounts]:
        """What is not written, by tenant and hour."""
        return {Bucket(*life, hour): amounts for life, hours in self._unwritten.items() for hour, amounts in hours.items() if amounts}

    def take(self) -> tuple[dict[Bucket, Amounts], dict[str, UsageRow]]:
        """What is not written, and the new totals of the tenants that it changes; from now on both count as written."""
        taken = self.unwritten()
        paths = {bucket.tenant for bucket in taken if self._lives.get(bucket.tenant) == (bucket.tenant, bucket.born)} - {SYSTEM}
        totals = {path: self.totals(path) for path in paths}
        self._totals |= totals
        self._unwritten = {}
        return taken, totals

    def put_back(self, taken: Mapping[Bucket, Amounts]) -> None:
        """What was taken could not be written."""
        for bucket, amounts in taken.items():
            life = (bucket.tenant, bucket.born)
            self._unwritten.setdefault(life, {}).setdefault(bucket.hour, Amounts()).add(amounts)
            if self._lives.get(bucket.tenant) == life and (total := self._totals.get(bucket.tenant)) is not None:
                tokens = total.input_tokens - amounts.input_tokens, total.output_tokens - amounts.output_tokens
                self._totals[bucket.tenant] = UsageRow(*tokens, total.service)
