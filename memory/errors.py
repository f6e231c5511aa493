"""What can go wrong in bookkeeping.

PagingError
 +- OutOfFrames     a tier has too little that may be reclaimed now; waiting or preempting helps
 +- NeverFits       more than the tier, or the owner's limit, could ever hold
 +- OverLimit       the owner's own limit, not the tier, is what stops it
 +- GuaranteeConflict  more would be guaranteed than there is
 +- PagePinned      the page is named by a plan on its way
 +- UnknownSpace    no such space is open
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memory.remedy import Remedy, sentence, size_text


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who holds bytes of a tier."""

    owner: str
    size_bytes: int


class PagingError(Exception):
    """Memory bookkeeping failed."""

    remedies: tuple[Remedy, ...] = ()  # what would help, smallest change first, once somebody has said so

    def advise(self, remedies: Sequence[Remedy]) -> None:
        """Say what would help; the message names the smallest change."""
        if remedies and not self.remedies:
            self.remedies = tuple(remedies)
            self.args = (f"{self} {sentence(remedies)}",)


class OutOfFrames(PagingError):
    """No frame is free, and nothing may be reclaimed now."""

    def __init__(self, tier: str, needed_bytes: int, free_bytes: int, holders: tuple[Holder, ...]) -> None:
        self.tier = tier
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.holders = holders
        super().__init__(
            f"The {tier} tier has {size_text(free_bytes)} free or reclaimable, {size_text(needed_bytes)} are needed. {describe(holders)}"
        )


class NeverFits(PagingError):
    """This can never fit, whoever else leaves."""

    def __init__(self, tier: str, needed_bytes: int, limit_bytes: int, holders: tuple[Holder, ...], what: str = "") -> None:
        """`what`: a sentence on what it needs that much for."""
        self.tier = tier
        self.needed_bytes = needed_bytes
        self.limit_bytes = limit_bytes
        self.holders = holders
        sizes = f"It needs {size_text(needed_bytes)} of the {tier} tier, which can give it {size_text(limit_bytes)} at most."
        super().__init__(f"{sizes} {what} {describe(holders)}" if what else f"{sizes} {describe(holders)}")


class OverLimit(PagingError):
    """The owner's limit for this tier is reached."""

    def __init__(self, owner: str, tier: str, needed_bytes: int, limit_bytes: int, used_bytes: int) -> None:
        self.owner = owner
        self.tier = tier
        self.needed_bytes = needed_bytes
        self.limit_bytes = limit_bytes
        self.used_bytes = used_bytes
        held = f"{owner} holds {size_text(used_bytes)} of the {tier} tier and needs {size_text(needed_bytes)} more"
        super().__init__(f"{held}; its limit is {size_text(limit_bytes)}.")


class GuaranteeConflict(PagingError):
    """The guarantees of a tier would add up to more than it has, or than a limit above them allows."""

    def __init__(self, tier: str, owner: str, sum_bytes: int, most_bytes: int, holders: tuple[Holder, ...], within: str = "") -> None:
        self.tier = tier
        self.owner = owner
        self.sum_bytes = sum_bytes
        self.most_bytes = most_bytes
        self.holders = holders
        self.within = within  # whose limit it is, empty: the tier's size
        most = f"the limit of {within} is {most_bytes}" if within else f"the {tier} tier has {most_bytes}"
        named = ", ".join(f"{holder.owner} ({holder.size_bytes})" for holder in holders)
        super().__init__(f"Guarantees of the {tier} tier would add up to {sum_bytes} bytes; {most}. Guaranteed to {named or 'nobody'}.")


class PagePinned(PagingError):
    """The page is named by a plan that is on its way."""


class UnknownSpace(PagingError):
    """No such space is open."""


def describe(holders: tuple[Holder, ...]) -> str:
    """Name the holders, largest first, in one sentence."""
    if not holders:
        return "Nobody else holds any of it."
    ranked = sorted(holders, key=lambda holder: (-holder.size_bytes, holder.owner))
    return "Held by " + ", ".join(f"{holder.owner} ({size_text(holder.size_bytes)})" for holder in ranked) + "."
