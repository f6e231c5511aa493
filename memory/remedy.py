"""A remedy: one change that would let something fit, as a value that programs can act on and as a sentence for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

SETTINGS = {"disk": "page_file"}  # of a tier whose size is not set under its own name


class Action(Enum):
    """What is to be done."""

    RAISE_LIMIT = "raise_limit"  # `size_bytes` is the new limit of `owner`
    LOWER_GUARANTEE = "lower_guarantee"  # `size_bytes` is the new guarantee of `owner`
    SUSPEND = "suspend"  # the context `subject`, wholly to disk
    FREE = "free"  # the context `subject`
    CANCEL = "cancel"  # the request of the context `subject`, or wait for its end
    UNLOAD = "unload"  # the model `subject`
    UNPIN = "unpin"  # the model `subject`: it, or its base, is idle and would leave for others
    SHORTEN = "shorten"  # the context to `size_bytes` of KV
    ENLARGE = "enlarge"  # the tier to `size_bytes`


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change. `size_bytes` is what it frees, or the new size of what it sets; an empty subject is one that the reader may not know.

    `is_part`: it helps only together with the others that are parts.
    """

    action: Action
    tier: str
    size_bytes: int
    owner: str = ""
    subject: str = ""
    is_part: bool = False

    @property
    def text(self) -> str:
        """The change as an order to a person."""
        size = size_text(self.size_bytes)
        named = f"context {self.subject[:12]}" if self.subject else "a context"
        return {
            Action.RAISE_LIMIT: f"raise the {self.tier} limit of {self.owner} to {size}",
            Action.LOWER_GUARANTEE: f"lower the {self.tier} guarantee of {self.owner} to {size}",
            Action.SUSPEND: f"suspend {named} of {self.owner} to disk ({size})",
            Action.FREE: f"free {named} of {self.owner} ({size})",
            Action.CANCEL: f"cancel the request of {named} of {self.owner}, or wait for its end ({size})",
            Action.UNLOAD: f"unload the model {self.subject} ({size})",
            Action.UNPIN: f"unpin the model {self.subject} ({size})",
            Action.SHORTEN: f"keep the context's KV within {size}",
            Action.ENLARGE: f"give the {self.tier} tier {size} (memory.{SETTINGS.get(self.tier, self.tier)}_bytes)",
        }[self.action]


def size_text(size_bytes: int) -> str:
    """A size that is not smaller than it says: in the largest binary unit that leaves two digits, rounded up."""
    for unit, suffix in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= 10 * unit or (size_bytes >= unit and size_bytes % unit == 0):
            return f"{-(-size_bytes // unit)} {suffix}"
    return f"{size_bytes} B"


def sentence(remedies: Iterable[Remedy]) -> str:
    """The smallest change that would fit, as a sentence, or those that do together; empty if none is known."""
    found = list(remedies)
    if not found:
        return ""
    if not found[0].is_part:
        return f"What would help: {found[0].text}."
    return f"What would help, together: {'; '.join(remedy.text for remedy in found if remedy.is_part)}."
