"""What one field may hold: the kinds of bounds that `syscalls.bounds` gives to the fields of requests."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import EnumDescriptor

from kerneld.errors import InvalidArgument

# Compared with what may be read from a message: its value and the path that a refusal names.
Check = Callable[[Any, str], None]


@dataclass(frozen=True, slots=True)
class Text:
    """A string of `min_chars` to `max_chars` characters, all of it matching `pattern`."""

    max_chars: int
    min_chars: int = 0
    pattern: re.Pattern[str] | None = None
    meaning: str = ""  # completes "must be ..."

    def __call__(self, value: str, path: str) -> None:
        if len(value) < self.min_chars:
            raise InvalidArgument(path, "is required." if not value else f"must be {self.meaning}.")
        if len(value) > self.max_chars:
            raise InvalidArgument(path, f"is {len(value)} characters long; at most {self.max_chars} are accepted.")
        if self.pattern is not None and value and self.pattern.fullmatch(value) is None:
            raise InvalidArgument(path, f"must be {self.meaning}.")


@dataclass(frozen=True, slots=True)
class Number:
    """A number in [low, high]; never infinite, never NaN."""

    low: float
    high: float

    def __call__(self, value: float, path: str) -> None:
        if not self.low <= value <= self.high:
            shown = "not a number" if math.isnan(value) else f"{value:g}" if isinstance(value, float) else str(value)
            raise InvalidArgument(path, f"must be between {self.low} and {self.high}; it is {shown}.")


@dataclass(frozen=True, slots=True)
class Known:
    """A number that the enum knows; 0, which stands for the default, only where `has_default`."""

    enum: EnumDescriptor
    has_default: bool = True

    def __call__(self, value: int, path: str) -> None:
        if value not in self.enum.values_by_number or (value == 0 and not self.has_default):
            names = ", ".join(item.name for item in self.enum.values if item.number)
            raise InvalidArgument(path, f"must be one of {names}; it is {value}.")


@dataclass(frozen=True, slots=True)
class Many:
    """A list of `least` to `most` items, each within its own bound (None: the items are messages or enums, bound by themselves)."""

    most: int
    each: Text | Number | None = None
    least: int = 0

    def __call__(self, values: Sequence[Any], path: str) -> None:
        self.count(values, path)
        if isinstance(self.each, Number) and values and self.each.low <= min(values) and max(values) <= self.each.high:
            return  # token ids come by the hundred thousand; min and max are ten times faster than a look at each
        if self.each is not None:
            for i, value in enumerate(values):
                self.each(value, f"{path}[{i}]")

    def count(self, values: Sequence[Any], path: str) -> None:
        """Check the length alone."""
        if len(values) > self.most:
            raise InvalidArgument(path, f"has {len(values)} items; at most {self.most} are accepted.")
        if len(values) < self.least:
            raise InvalidArgument(path, "is required.")


@dataclass(frozen=True, slots=True)
class Labels:
    """A map of at most `most` short texts, or numbers of an enum."""

    most: int
    key: Text
    value: Text | Known

    def __call__(self, labels: Any, path: str) -> None:
        if len(labels) > self.most:
            raise InvalidArgument(path, f"has {len(labels)} items; at most {self.most} are accepted.")
        for key, value in labels.items():
            self.key(key, f"{path} (a key)")
            self.value(value, f"{path}[{key!r}]")


Bound = Text | Number | Many | Labels


@dataclass(frozen=True, slots=True)
class Given:
    """A message that has to be there; its fields have bounds of their own."""
