"""One system call as data: which method, what to send, how to read the answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from kerneld_client.errors import InvalidArgument
from kerneld_client.pb import syscalls_pb2 as pb

T = TypeVar("T")

# Calls that read or write much on disk, or wait for a device, have longer than the client's own timeout.
SLOW_S = 600.0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One call, ready to be sent as often as it takes: a mutating one carries its request_id."""

    path: str
    request: Message
    answer: type[Message]
    read: Callable[[Any], T]
    timeout_s: float | None = None  # None: the client's


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list."""

    items: list[T]
    next_page_token: str


def new_request_id() -> str:
    """A key that no other call has."""
    return uuid.uuid4().hex


M = TypeVar("M", bound=Message)


def fill(message: M, fields: Mapping[str, object], called: str = "") -> M:
    """Set the fields that are not None. Raises: InvalidArgument, naming the field (or what it is called) that cannot hold its value."""
    for name, value in fields.items():
        if value is None:
            continue
        if name not in message.DESCRIPTOR.fields_by_name:
            raise TypeError(f"There is no option {name!r}; there are {', '.join(sorted(message.DESCRIPTOR.fields_by_name))}.")
        try:
            _set(message, name, value)
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidArgument.of(called or name, f"{error}") from error
    return message


def _set(message: Message, name: str, value: object) -> None:
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
        getattr(message, name).SetInParent()  # an empty one is there too
    elif isinstance(value, Mapping):
        getattr(message, name).update(value)
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


def enum_number(names: Any, prefix: str, field: str, word: object) -> object:
    if word is None:
        return None
    known = {name.removeprefix(prefix).lower(): name for name in names if not name.endswith("_UNSPECIFIED")}
    if str(word) not in known:
        raise InvalidArgument.of(field, f"must be one of {', '.join(known)}; it is {word!r}.")
    return names[known[str(word)]]


def words(options: Mapping[str, object]) -> dict[str, object]:
    """Options with words for enums replaced by their numbers, and a request_id."""
    fields = {"request_id": new_request_id(), **options}
    if "priority" in fields:
        fields["priority"] = enum_number(dict(pb.Priority.items()), "PRIORITY_", "priority", fields["priority"])
    if "durability" in fields:
        fields["durability"] = enum_number(dict(pb.Durability.items()), "DURABILITY_", "durability", fields["durability"])
    return fields


def unary(verb: str, request: Message, answer: type[Message], read: Callable[[Any], T], timeout_s: float | None = None) -> Call[T]:
    return Call(f"/kerneld.v1.{verb}", request, answer, read, timeout_s)


def nothing(_: Message) -> None:
    """Read an answer that says no more than that it was done."""


def page_of(field: str, read_item: Callable[[Any], T]) -> Callable[[Any], Page[T]]:
    def read_page(message: Any) -> Page[T]:
        return Page([read_item(item) for item in getattr(message, field)], message.next_page_token)

    return read_page
