"""Events of the disk tier: what moved, what did not hold, and when the disk failed."""

from __future__ import annotations

from dataclasses import dataclass

from kerneld.events import Action, Detail


@dataclass(frozen=True, slots=True)
class PagesSpilled(Detail):
    """Pages were copied from the host tier to the disk tier."""

    num_pages: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PagesFetched(Detail):
    """Pages were copied from the disk tier to the host tier."""

    num_pages: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DiskPageCorrupt(Action):
    """A page in the disk tier was not what it should be; it is computed again."""

    frame: int
    problem: str


@dataclass(frozen=True, slots=True)
class DiskTierFailed(Action):
    """The disk did not do what was asked: pages that were to be fetched are computed again, those to be spilled stay where they are."""

    action: str  # "spill", "fetch", "punch"
    num_pages: int
    problem: str
