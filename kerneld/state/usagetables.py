"""The relational schema of usage; the rest is in `kerneld.state.tables`.

usage         what a living tenant has used, added up; `service` is that of its fair-share account when this was written
usage_hours   what was used, by tenant, by when the tenant was added, and by hour; outlives the tenant
decayed       service charged to a node of the tree of tenants, with a half-life; `at` is in the seconds of usage_clock
usage_clock   one row: how many seconds have passed for usage, and what the time of day was then
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Float, Integer, String, Table

from kerneld.state.tables import metadata
from kerneld.usage.amounts import AMOUNTS

usage_hours = Table(
    "usage_hours",
    metadata,
    Column("tenant", String(256), primary_key=True),
    Column("born", Float, primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False, index=True),
    *(Column(name, BigInteger, nullable=False) for name in AMOUNTS),
)

decayed = Table(
    "decayed",
    metadata,
    Column("node", String(260), primary_key=True),  # a path, or the hidden child of one
    Column("value_us", Float, nullable=False),
    Column("at", Float, nullable=False),
)

usage_clock = Table(
    "usage_clock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("passed_s", Float, nullable=False),
    Column("wall_s", Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class DecayedRow:
    """What a node of the tree had used at a time."""

    value_us: float
    at: float


@dataclass(frozen=True, slots=True)
class ClockRow:
    """The clock of usage: seconds that have passed for it, and the Unix seconds at which that was so."""

    passed_s: float
    wall_s: float
