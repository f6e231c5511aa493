"""Requests that pass every bound, made from the descriptors."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kerneld_client.pb import syscalls_pb2 as pb
from syscalls.bounds import BOUNDS
from syscalls.fields import Given, Text

ID = "0123456789abcdef" * 2
GOOD: dict[str, Any] = {
    "id": "t1",
    "path": "lab/a",
    "name": "demo",
    "model": "demo",
    "tenant": "lab/a",
    "grantee": "tenant:lab",
    "role": "user",
}


def bound_of(field: FieldDescriptor) -> Any:
    """The row of a field."""
    owner = field.full_name.split(".")[-2]
    return BOUNDS.get(f"{owner}.{field.name}", BOUNDS.get(field.name))


def well_formed(kind: type[Message]) -> Any:
    """A request that passes."""
    request: Any = kind()
    for field in request.DESCRIPTOR.fields:
        bound = bound_of(field)
        if field.name.endswith("_id") and field.name != "request_id":
            setattr(request, field.name, ID)
        elif isinstance(bound, Text) and bound.min_chars and not field.is_repeated and field.containing_oneof is None:
            setattr(request, field.name, GOOD[field.name])
        elif isinstance(bound, Given):
            request.grant.CopyFrom(pb.Grant(grantee="tenant:lab", access=[pb.ACCESS_READ]))
    return request
