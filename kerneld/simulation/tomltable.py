"""A table of a TOML file, read key by key: each with what it may be, and at the end nothing may be left that nobody asked for."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TypeVar

from kerneld.simulation.workload import WorkloadInvalid

E = TypeVar("E", bound=Enum)


class TomlTable:
    """One table; `where` names it in errors: the file, then its place in it."""

    def __init__(self, where: str, values: Mapping[str, object]) -> None:
        self.where = where
        self._values = values
        self._asked: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether a key is given."""
        self._asked.add(key)
        return key in self._values

    def number(self, key: str, default: float | None = None, *, least: float = 0.0, is_above: bool = False) -> float:
        """A number, not below `least`, or above it with `is_above`. Without a default it must be there. Raises: WorkloadInvalid."""
        if not self.has(key) and default is not None:
            return default
        value = self._values.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < least or (is_above and value == least):  # type: ignore[operator]
            raise self.error(key, f"a number {'above' if is_above else 'of at least'} {least:g}")
        return float(value)  # type: ignore[arg-type]

    def whole(self, key: str, default: int | None = None, *, least: int = 0, most: int = 1 << 62) -> int:
        """A whole number from `least` to `most`. Without a default it must be there. Raises: WorkloadInvalid."""
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.error(key, f"a whole number of at least {least}" + (f", at most {most}" if most < 1 << 62 else ""))
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text. Without a default it must be there. Raises: WorkloadInvalid."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "a text")
        return value

    def choice(self, key: str, kind: type[E], default: E) -> E:
        """A member of an enumeration, by its value. Raises: WorkloadInvalid."""
        text = self.text(key, str(default.value))
        for item in kind:
            if item.value == text:
                return item
        raise self.error(key, "one of " + ", ".join(str(item.value) for item in kind))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers that do not fall, none below 0. Raises: WorkloadInvalid."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
            raise self.error(key, "a list of numbers")
        if any(later < item for item, later in zip([0, *value], value, strict=False)):
            raise self.error(key, "a list of numbers that do not fall, none below 0")
        return tuple(float(item) for item in value)

    def table(self, key: str) -> TomlTable | None:
        """A table below this one, if it is there. Raises: WorkloadInvalid."""
        if not self.has(key):
            return None
        value = self._values[key]
        if not isinstance(value, dict):
            raise self.error(key, "a table")
        return TomlTable(f"{self.where}: {key}", value)

    def tables(self, key: str, name: str = "") -> list[TomlTable]:
        """The tables of a list; one that has a text under `name` is called by that. Raises: WorkloadInvalid."""
        value = self._values.get(key, []) if self.has(key) else []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(key, f"tables: write [[{key}]] above each")
        return [TomlTable(f"{self.where}: {key} {item.get(name, number)}", item) for number, item in enumerate(value, 1)]

    def raw(self, key: str) -> object:
        """Whatever is given, or None."""
        return self._values[key] if self.has(key) else None

    def finish(self) -> None:
        """Nobody asks for more. Raises: WorkloadInvalid, if a key is left."""
        for key in self._values:
            if key not in self._asked:
                raise WorkloadInvalid(f"{self.where}: there is no key {key!r}{_nearest(key, self._asked)}.")

    def error(self, key: str, expected: str) -> WorkloadInvalid:
        """An error that says where, what was given and what is accepted."""
        if key not in self._values:
            return WorkloadInvalid(f"{self.where}: {key} is missing: {expected}.")
        return WorkloadInvalid(f"{self.where}: {key} = {self._values[key]!r}: expected {expected}.")

    def _get(self, key: str, default: object) -> object:
        return self._values[key] if self.has(key) else default


def _nearest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {close[0]!r}" if close else f"; there are {', '.join(sorted(known))}"
