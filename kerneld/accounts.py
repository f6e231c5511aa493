"""The durable form of the scheduler's books: what a restart needs so that its next picks are those of a run that was never interrupted.

`Accounts` is a record of the journal. It is written in the same write as whatever changed the books (an admission, the tokens of a step,
the end of a request), and names only what changed: of two, the later goes over the earlier, entry by entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from kerneld.pricing.tariff import Tariff


class ShareAccount(msgspec.Struct, frozen=True, array_like=True):
    """One node of the tree of shares; the fields are those of `kerneld.sharenode.ShareNode`. `path` is empty for the root."""

    path: str
    counter: int
    remainder: int
    service: int  # cost charged, refunds taken off, in microseconds of device time
    is_active: bool  # something waits at it or below that may be next
    last_active: int  # counter of the child that was active last
    factor_milli: int = 1000  # its weight is multiplied by this / 1000
    last_child: str = ""  # name of the child that was active last: what it is charged from now on moves `last_active`
    is_removed: bool = False  # the node is gone, and nothing is kept of it
    is_held: bool = False  # a request at it or below is held out of the line
    is_new: bool = False  # nothing was charged to it since it became active


class RateAccount(msgspec.Struct, frozen=True, array_like=True):
    """What is left of a rate of a tenant: the microseconds until it is full again, as it was at a time (Unix microseconds)."""

    full_in_us: int
    at_us: int


class LoadAccount(msgspec.Struct, frozen=True, array_like=True):
    """What is still owed for the load of a model that is on the device, and by what service it will be split if it leaves."""

    owed_us: int
    served_us: dict[str, int] = {}  # by tenant


class Accounts(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """What changed of the books since the record before."""

    shares: tuple[ShareAccount, ...] = ()
    outputs: dict[str, tuple[int, ...]] = {}  # lengths of a tenant's last outputs, by tenant
    tariffs: dict[str, Tariff] = {}  # by model
    rates: dict[str, dict[str, RateAccount]] = {}  # by tenant, by limit; none: they are full, or the tenant is gone
    loads: dict[str, LoadAccount] = {}  # by model; nothing owed: it is paid, or the model left


def together(parts: Iterable[Accounts]) -> Accounts | None:
    """The changes of several books as one record; None if there are none."""
    parts = [part for part in parts if part != NO_CHANGES]
    if len(parts) < 2:
        return parts[0] if parts else None
    return Accounts(
        shares=tuple(share for part in parts for share in part.shares),
        outputs={tenant: outputs for part in parts for tenant, outputs in part.outputs.items()},
        tariffs={model: tariff for part in parts for model, tariff in part.tariffs.items()},
        rates={tenant: rates for part in parts for tenant, rates in part.rates.items()},
        loads={model: load for part in parts for model, load in part.loads.items()},
    )


NO_CHANGES: Final = Accounts()
