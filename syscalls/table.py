"""The syscall table: every verb with its permission, read from the options in `proto/syscalls.proto`.

The table is the only way in. `syscalls.interceptors` serves a call if and only if it stands here; a method that declares no permission
does not get into the table, and the daemon does not start (`TableError`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kerneld_client.pb import syscalls_pb2 as pb

# What names the object of a call in the audit log: the first of these that the request has.
OBJECT_FIELDS = ("context_id", "image_id", "model", "name", "path", "id", "tenant")


class TableError(RuntimeError):
    """The interface declares a method that cannot be served safely."""


@dataclass(frozen=True, slots=True)
class Syscall:
    """One row: a verb, who may call it, and the messages that it takes and gives."""

    verb: str  # "AllocContext"
    service: str  # "kerneld.v1.Contexts"
    permission: str  # "context.alloc"
    mutates: bool  # audited, idempotent by request_id, and run to its end once begun
    is_stream: bool  # the answer is a stream
    request: type[Message]
    response: type[Message]
    object_field: str  # field of the request that names its object; empty: it has none

    @property
    def path(self) -> str:
        """The name of the method on the wire."""
        return f"/{self.service}/{self.verb}"


def build_table() -> Mapping[str, Syscall]:
    """Every system call by its name on the wire. Raises: TableError, if a method declares no permission or streams its request."""
    return {syscall.path: syscall for service in services() for syscall in map(row_of, service.methods)}


def services() -> Iterator[ServiceDescriptor]:
    """The services of the public interface."""
    yield from pb.DESCRIPTOR.services_by_name.values()


def row_of(method: MethodDescriptor) -> Syscall:
    """The row of one method. Raises: TableError."""
    options: Any = method.GetOptions().Extensions  # the generated stubs do not know extensions
    permission: str = options[pb.permission]
    if not permission:
        raise TableError(f"{method.full_name} declares no permission.")
    if method.client_streaming:
        raise TableError(f"{method.full_name} streams its request, which no handler reads.")
    fields = method.input_type.fields_by_name
    return Syscall(
        verb=method.name,
        service=method.containing_service.full_name,
        permission=permission,
        mutates=bool(options[pb.mutates]),
        is_stream=method.server_streaming,
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        object_field=next((name for name in OBJECT_FIELDS if name in fields), ""),
    )
