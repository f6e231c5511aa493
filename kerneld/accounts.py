"""The durable form of the scheduler's books: what a restart needs so that its next picks are those of a run that was never interrupted.

`Accounts` is a record of the journal. It is written in the same write as whatever changed the books (an admission, the tokens of a step,
the end of a request), and names only what changed: of two, the later goes over the earlier, entry by entry.
"""

from __future__ import annotations

import msgspec

from kerneld.pricing.tariff import Tariff


class ShareAccount(msgspec.Struct, frozen=True, array_like=True):
    """One node of the tree of shares; the fields are those of `kerneld.sharenode.ShareNode`. `path` is empty for the root."""

    path: str
    counter: int
    remainder: int
    service: int  # cost charged, refunds taken off, in microseconds of device time
    is_active: bool  # something waits at it or below
    last_active: int  # counter of the child that was active last
    factor_milli: int = 1000  # its weight is multiplied by this / 1000
    last_child: str = ""  # name of the child that was active last: what it is charged from now on moves `last_active`


class Accounts(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """What changed of the books since the record before."""

    shares: tuple[ShareAccount, ...] = ()
    outputs: dict[str, tuple[int, ...]] = {}  # lengths of a tenant's last outputs, by tenant
    tariffs: dict[str, Tariff] = {}  # by model
