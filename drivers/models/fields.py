"""Typed reading of a JSON object whose author we do not trust."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from drivers.errors import ModelCorrupt, ModelUnsupported

MAX_JSON_BYTES = 16 << 20


class Fields:
    """A JSON object that says which field is wrong, and what would be right.

    A field that is missing or null takes its default; a default of `...` makes it required.
    """

    def __init__(self, values: Mapping[str, object], origin: str) -> None:
        self.values = values
        self.origin = origin

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Read a JSON file. Raises: ModelCorrupt, if it is not an object or larger than any config is."""
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise ModelCorrupt(f"{path.name} is larger than {MAX_JSON_BYTES} bytes.")
            values = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ModelCorrupt(f"{path.name} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise ModelCorrupt(f"{path.name} is not valid JSON: {error}.") from error
        if not isinstance(values, dict):
            raise ModelCorrupt(f"{path.name} is not a JSON object.")
        return cls(values, path.name)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = 1 << 31) -> int:
        """A whole number in [low, high]. Raises: ModelCorrupt."""
        value = self._value(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ModelCorrupt(f"{self.origin}: {name} is {value!r}; it has to be a whole number from {low} to {high}.")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = 0.0) -> float:
        """A finite number that is at least `low`. Raises: ModelCorrupt."""
        value = self._value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < low:
            raise ModelCorrupt(f"{self.origin}: {name} is {value!r}; it has to be a finite number of at least {low}.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false. Raises: ModelCorrupt."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise ModelCorrupt(f"{self.origin}: {name} is {value!r}; it has to be true or false.")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string. Raises: ModelCorrupt."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise ModelCorrupt(f"{self.origin}: {name} is {value!r}; it has to be a string.")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings. Raises: ModelCorrupt."""
        value = self._value(name, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ModelCorrupt(f"{self.origin}: {name} is {value!r}; it has to be a list of strings.")
        return tuple(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers above 0. Raises: ModelCorrupt."""
        value = self._value(name, None)
        if not isinstance(value, list) or not all(isinstance(item, int | float) and math.isfinite(item) and item > 0 for item in value):
            raise ModelCorrupt(f"{self.origin}: {name} has to be a list of finite numbers above 0.")
        return tuple(map(float, value))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers of at least 0; nothing where it is missing. Raises: ModelCorrupt."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, list):
            raise ModelCorrupt(f"{self.origin}: {name} is {value!r}; it has to be a list of whole numbers.")
        items = value or []
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
            raise ModelCorrupt(f"{self.origin}: {name} has to be a list of whole numbers of at least 0.")
        return tuple(items)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id or a list of them; nothing where it is missing. Raises: ModelCorrupt."""
        value = self.values.get(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
            raise ModelCorrupt(f"{self.origin}: {name} is {value!r}; it has to be a token id or a list of them.")
        return tuple(items)

    def inner(self, name: str) -> Fields | None:
        """The object in this field, or None where it is missing. Raises: ModelCorrupt."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ModelCorrupt(f"{self.origin}: {name} is {value!r}; it has to be an object.")
        return Fields(value, f"{self.origin}, {name}")

    def unsupported(self, name: str, supported: str) -> ModelUnsupported:
        """The error that names this field, its value, and what would be supported."""
        return ModelUnsupported(f"{self.origin}: {name} is {self.values.get(name)!r}; supported is {supported}.")

    def _value(self, name: str, default: object) -> object:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise ModelCorrupt(f"{self.origin}: {name} is missing.")
        return default
