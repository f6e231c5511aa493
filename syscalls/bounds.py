"""What every field of a request may hold: the outermost bounds, checked before a handler sees the message.

`BOUNDS` names each field, either for all messages ("context_id") or for one ("ListCheckpointsRequest.context_id", which wins). Flags need
no bound, and an enum is bound by its own numbers. A field that is in no row stops the daemon from starting (`BoundMissing`), so a new
field cannot be forgotten. Limits that an administrator may set, or that depend on a model, are the kernel's and lie inside these.

A refusal is `InvalidArgument`, with the path of the field ("sampling.top_p", "messages.messages[2].role") and one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from kerneld.errors import InvalidArgument
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls.fields import Bound, Check, Given, Known, Labels, Many, Number, Text

YEAR_S = 366 * 86_400
MAX_TOKENS = 1 << 24
MAX_BYTES = 1 << 60


class BoundMissing(RuntimeError):
    """A field of a request has no bound."""


PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]*")
TOKEN_ID = Number(0, (1 << 31) - 1)
ID = Text(32, 1, re.compile(r"[0-9a-f]{32}"), "32 hexadecimal digits")
BEGINNING = Text(32, 1, re.compile(r"[0-9a-f]{1,32}"), "hexadecimal digits, 32 at most")
NAME = Text(128, 1, re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*"), "letters, digits and . _ : / @ + -, beginning with a letter or digit")
OPTIONAL_NAME = Text(128, 0, NAME.pattern, NAME.meaning)
TITLE = Text(256, 0, PRINTABLE, "free of control characters")
TENANT = Text(256, 1, re.compile(r"[A-Za-z0-9._@+-]+(/[A-Za-z0-9._@+-]+)*"), "a path such as lab/group/person")
TENANT_OR_SYSTEM = Text(256, 0, re.compile(r"\(system\)|[A-Za-z0-9._@+-]+(/[A-Za-z0-9._@+-]+)*"), "a path such as lab/group/person")
OPTIONAL_TENANT = Text(256, 0, TENANT.pattern, TENANT.meaning)
QUANTIZATION = Text(64, 0, re.compile(r"[a-z0-9_.-]*"), "int8, int4 (kv_quant: int8, fp8) or another name of the driver, in small letters")
FILE_PATH = Text(4096, 1, PRINTABLE, "free of control characters")
GRANTEE = Text(256, 1, re.compile(r"(principal|tenant):[^\x00-\x1f\x7f]+"), "principal:NAME or tenant:PATH")
CONTENT = Text(1 << 26)  # the message limit is the narrower one

BOUNDS: dict[str, Bound | Given] = {
    "request_id": Text(64, 0, re.compile(r"[\x21-\x7e]*"), "printable characters without spaces"),
    "context_id": ID,
    "ListCheckpointsRequest.context_id": Text(32, 0, ID.pattern, ID.meaning),
    "image_id": ID,
    "id": Text(64, 1, re.compile(r"[\x21-\x7e]+"), "printable characters without spaces"),
    "page_size": Number(0, 1000),
    "page_token": Text(512, 0, PRINTABLE, "what next_page_token was"),
    "model": OPTIONAL_NAME,
    "AllocContextRequest.model": NAME,
    "adapter": OPTIONAL_NAME,
    "base": OPTIONAL_NAME,
    "device": Text(32, 0, re.compile(r"[a-z0-9][a-z0-9_-]*"), "the name of a device: small letters, digits, - and _"),
    "tenant": OPTIONAL_TENANT,
    "AddTokenRequest.tenant": TENANT,
    "labels": Labels(256, Text(256, 1, PRINTABLE, "free of control characters"), Text(1024, 0, PRINTABLE, "free of control characters")),
    "max_tokens": Number(0, MAX_TOKENS),
    "num_tokens": Number(0, MAX_TOKENS),
    "offset": Number(0, MAX_TOKENS),
    "at": Number(0, MAX_TOKENS),
    "limit": Number(0, 1 << 16),
    "nice": Number(-20, 19),
    "seed": Number(0, (1 << 64) - 1),
    "grant": Given(),
    "grantee": GRANTEE,
    "access": Many(3, least=1),
    "expires_at": Number(0, 1e11),
    "text": CONTENT,
    "ScoreRequest.text": CONTENT,
    "ids": Many(1 << 20, TOKEN_ID),
    "messages": Many(1 << 14),
    "role": Text(32, 1, re.compile(r"[a-z_]+"), "a role such as user, in small letters"),
    "content": CONTENT,
    "temperature": Number(0, 100),
    "top_k": Number(0, (1 << 31) - 1),
    "top_p": Number(0, 1),
    "min_p": Number(0, 1),
    "repetition_penalty": Number(0.01, 100),
    "presence_penalty": Number(-2, 2),
    "frequency_penalty": Number(-2, 2),
    "stop": Many(64, Text(1024, 1)),
    "stop_token_ids": Many(64, TOKEN_ID),
    "logprobs": Number(0, 20),
    "draft_tokens": Number(0, 16),
    "draft_model": Text(128, 0, PRINTABLE, "free of control characters"),
    "top": Number(0, 20),
    "deadline_s": Number(0, 30 * 86_400),
    "detach_grace_s": Number(0, 86_400),
    "max_queue_s": Number(0, 30 * 86_400),
    "name": NAME,
    "CheckpointRequest.name": TITLE,
    "AddTokenRequest.name": TITLE,
    "path": FILE_PATH,
    "LoadModelRequest.path": Text(4096, 0, PRINTABLE, "free of control characters"),
    "AddTenantRequest.path": TENANT,
    "SetTenantRequest.path": TENANT,
    "RemoveTenantRequest.path": TENANT,
    "max_positions": Number(0, MAX_TOKENS),
    "quant": QUANTIZATION,
    "kv_quant": QUANTIZATION,
    "weight": Number(0, 1_000_000),
    "device_bytes": Number(0, MAX_BYTES),
    "host_bytes": Number(0, MAX_BYTES),
    "image_bytes": Number(0, MAX_BYTES),
    "disk_bytes": Number(0, MAX_BYTES),
    "device_guarantee_bytes": Number(0, MAX_BYTES),
    "host_guarantee_bytes": Number(0, MAX_BYTES),
    "disk_guarantee_bytes": Number(0, MAX_BYTES),
    "revision": Text(64, 0, re.compile(r"[0-9a-f]*"), "what the tenant's revision was"),
    "num_decisions": Number(0, 1000),
    "ExplainRequest.model": NAME,
    "ExplainRequest.request": BEGINNING,
    "max_contexts": Number(0, 1 << 30),
    "max_running": Number(0, 1 << 30),
    "max_queued": Number(0, 1 << 30),
    "requests_per_minute": Number(0, 1 << 40),
    "tokens_per_minute": Number(0, 1 << 40),
    "loads_per_hour": Number(0, 1 << 40),
    "modes": Labels(32, Text(64, 1, re.compile(r"[a-z_]+"), "the name of a limit"), Known(pb.LimitMode.DESCRIPTOR, has_default=False)),
    "sharing_group": OPTIONAL_NAME,
    "members": Many(1024, TENANT),
    "roles": Many(4, Text(32, 1, re.compile(r"[a-z]+"), "the name of a role")),
    "lifetime_s": Number(0, 20 * YEAR_S),
    "timeout_s": Number(0, 7 * 86_400),
    "interval_s": Number(0, 3600),
    "count": Number(0, 1_000_000),
    "since": Number(0, 1 << 62),
    "UsageRequest.tenant": TENANT_OR_SYSTEM,
    "UsageRequest.since": Number(0, 1e11),
    "until": Number(0, 1e11),
}


def compile_bounds(kind: type[Message]) -> Callable[[Message], None]:
    """Make the function that checks one kind of message. Raises: BoundMissing, naming a field without a bound."""
    descriptor: Any = kind.DESCRIPTOR  # its stub has two classes for one thing
    return _compile(descriptor, "")


def _compile(message: Descriptor, path: str) -> Callable[[Message], None]:
    checks = tuple(_field_check(field, f"{path}.{field.name}" if path else field.name) for field in message.fields)
    bound = tuple(check for check in checks if check is not None)

    def check_message(value: Message) -> None:
        for check in bound:
            check(value)

    return check_message


def _field_check(field: FieldDescriptor, path: str) -> Callable[[Message], None] | None:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return None
    owner = field.full_name.split(".")[-2]
    bound = BOUNDS.get(f"{owner}.{field.name}", BOUNDS.get(field.name))
    if field.message_type is not None and not isinstance(bound, Labels):
        return _message_check(field, field.message_type, bound, path)
    if field.enum_type is not None and not field.is_repeated:
        return _value_check(field, Known(field.enum_type), path)
    if bound is None or isinstance(bound, Given):
        raise BoundMissing(f"{field.full_name} has no bound in BOUNDS.")
    if field.enum_type is not None and isinstance(bound, Many):
        return _enums_check(field.name, bound, Known(field.enum_type, has_default=False), path)
    return _value_check(field, bound, path)


def _value_check(field: FieldDescriptor, check: Check, path: str) -> Callable[[Message], None]:
    name = field.name

    def check_value(message: Message) -> None:
        check(getattr(message, name), path)

    def check_given_value(message: Message) -> None:
        if message.HasField(name):
            check(getattr(message, name), path)

    return check_given_value if field.has_presence else check_value


def _message_check(field: FieldDescriptor, kind: Descriptor, bound: Bound | Given | None, path: str) -> Callable[[Message], None]:
    name = field.name
    if field.is_repeated:
        if not isinstance(bound, Many):
            raise BoundMissing(f"{field.full_name} has no bound in BOUNDS.")
        return _messages_check(field.name, bound, _compile(kind, ""), path)
    check = _compile(kind, path)

    def check_nested(message: Message) -> None:
        if message.HasField(name):
            check(getattr(message, name))
        elif isinstance(bound, Given):
            raise InvalidArgument(path, "is required.")

    return check_nested


def _messages_check(name: str, bound: Many, check: Callable[[Message], None], path: str) -> Callable[[Message], None]:
    def check_each(message: Message) -> None:
        values = getattr(message, name)
        bound.count(values, path)
        for i, value in enumerate(values):
            try:
                check(value)
            except InvalidArgument as error:
                raise InvalidArgument(f"{path}[{i}].{error.field}", error.problem) from None

    return check_each


def _enums_check(name: str, bound: Many, known: Known, path: str) -> Callable[[Message], None]:
    def check_enums(message: Message) -> None:
        values: Iterable[int] = getattr(message, name)
        bound.count(list(values), path)
        for i, value in enumerate(values):
            known(value, f"{path}[{i}]")

    return check_enums
