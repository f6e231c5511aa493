"""Exception <-> gRPC status, both ways, in one table.

A refusal travels as google.rpc.Status in the trailing metadata `grpc-status-details-bin`:

    ErrorInfo            always: reason (upper snake case), domain "kerneld", the facts
    RetryInfo            where the error says when to try again
    BadRequest           InvalidArgument: the field and what is wrong with it
    QuotaFailure         QuotaExceeded and below: whose limit
    PreconditionFailure  WrongState and below: what stands in the way; with memory, HOLDER of what is missing and REMEDY: what would help

Errors of the lower floors that escape the kernel have rows too: they are translated to the kernel error that says the same to a caller.
What has no row is a bug: INTERNAL with an error id that is in the log, and nothing of the exception itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details
from google.rpc.status_pb2 import Status

from drivers import errors as driver
from kerneld import errors as kernel
from memory import errors as paging
from memory.remedy import Remedy

DOMAIN = "kerneld"
DETAILS_KEY = "grpc-status-details-bin"
# Status and details travel in HTTP/2 trailers, of which clients accept 8 KiB: the message twice, the details in base64.
MAX_MESSAGE_BYTES = 800
MAX_FACT_BYTES = 400
MAX_FACTS = 8
MAX_DETAILS = 8
WORKER_RETRY_S = 1.0
MEMORY_RETRY_S = 1.0

CODES: dict[type[kernel.KernelError], grpc.StatusCode] = {
    kernel.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    kernel.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    kernel.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    kernel.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    kernel.NotFound: grpc.StatusCode.NOT_FOUND,
    kernel.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    kernel.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    kernel.CannotFit: grpc.StatusCode.FAILED_PRECONDITION,
    kernel.Quarantined: grpc.StatusCode.FAILED_PRECONDITION,
    kernel.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    kernel.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    kernel.DiskFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    kernel.MemoryExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    kernel.Conflict: grpc.StatusCode.ABORTED,
    kernel.Unavailable: grpc.StatusCode.UNAVAILABLE,
    kernel.Draining: grpc.StatusCode.UNAVAILABLE,
    kernel.DataLoss: grpc.StatusCode.DATA_LOSS,
    kernel.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
}
# The other way: the reason names the class, and where it is a finer one than any class, the code does.
BY_REASON: dict[str, type[kernel.KernelError]] = {cls.reason: cls for cls in CODES}
BY_CODE: dict[int, type[kernel.KernelError]] = {code.value[0]: cls for cls, code in reversed(CODES.items())}


def translate(error: Exception) -> kernel.KernelError | None:
    """The kernel error that says the same as an error of any floor; None, if it has no row and so is a bug."""
    for cls in type(error).__mro__:
        if cls in CODES:
            return error if isinstance(error, kernel.KernelError) else None
        if cls in LOWER:
            return LOWER[cls](error)
    return None


def internal(error_id: str) -> Status:
    """The status of a bug: it names the line in the log, and nothing else."""
    info = details.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id})
    text = f"This is a bug in kerneld; its log names it {error_id}."
    return Status(code=grpc.StatusCode.INTERNAL.value[0], message=text, details=[_pack(info)])


def to_status(error: kernel.KernelError) -> Status:
    """The status that tells a caller of this refusal."""
    parts: list[Message] = [details.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_short_facts(error.facts))]
    message = _cut(error.message, MAX_MESSAGE_BYTES)
    if error.retry_after_s is not None:
        retry = details.RetryInfo()
        retry.retry_delay.FromMicroseconds(round(max(error.retry_after_s, 0.0) * 1e6))
        parts.append(retry)
    if isinstance(error, kernel.InvalidArgument):
        violation = details.BadRequest.FieldViolation(field=error.field, description=_cut(error.problem, MAX_FACT_BYTES))
        parts.append(details.BadRequest(field_violations=[violation]))
    elif isinstance(error, kernel.QuotaExceeded):
        subject = _cut(error.facts.get("tenant") or error.facts.get("owner", ""), MAX_FACT_BYTES)
        parts.append(details.QuotaFailure(violations=[details.QuotaFailure.Violation(subject=subject, description=error.reason)]))
    elif isinstance(error, kernel.WrongState):
        subject = _cut(error.facts.get("context_id") or error.facts.get("name", ""), MAX_FACT_BYTES)
        held = details.PreconditionFailure.Violation(type=error.reason, subject=subject)
        parts.append(details.PreconditionFailure(violations=[held]))
    parts += _memory_details(error)
    return Status(code=code_of(error).value[0], message=message, details=[_pack(part) for part in parts])


def _memory_details(error: kernel.KernelError) -> Iterator[Message]:
    """Who holds what is missing, and what would help, for clients that read google.rpc details and know nothing of kerneld's facts."""
    holders = json.loads(error.facts.get("holders", "{}"))
    remedies = json.loads(error.facts.get("remedies", "[]"))
    held = [_violation("HOLDER", owner, f"{size} bytes") for owner, size in list(holders.items())[:MAX_DETAILS]]
    helps = [_violation("REMEDY", item["subject"] or item["owner"], f"{item['action']} {item['size_bytes']} bytes") for item in remedies]
    if held or helps:
        yield details.PreconditionFailure(violations=[*held, *helps])


def _violation(kind: str, subject: str, text: str) -> details.PreconditionFailure.Violation:
    return details.PreconditionFailure.Violation(type=kind, subject=_cut(subject, MAX_FACT_BYTES), description=text)


def from_status(status: Status) -> kernel.KernelError:
    """The error that `to_status` was given, as far as the status tells. INTERNAL and the like come back as a plain KernelError."""
    reason, facts, retry_after_s = "", dict[str, str](), None
    field, problem = "", ""
    for packed in status.details:
        info, retry, bad = details.ErrorInfo(), details.RetryInfo(), details.BadRequest()
        if packed.Unpack(info):
            reason, facts = info.reason, dict(info.metadata)
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMicroseconds() / 1e6
        elif packed.Unpack(bad) and bad.field_violations:
            field, problem = bad.field_violations[0].field, bad.field_violations[0].description
    cls = BY_REASON.get(reason) or BY_CODE.get(status.code, kernel.KernelError)
    if issubclass(cls, kernel.InvalidArgument):
        return kernel.InvalidArgument(field, problem)
    if issubclass(cls, kernel.NotFound) and facts.keys() >= {"noun", "name"}:
        return kernel.NotFound(facts["noun"], facts["name"])
    error = cls.__new__(cls)
    kernel.KernelError.__init__(error, status.message, reason=reason, facts=facts, retry_after_s=retry_after_s)
    return error


def code_of(error: kernel.KernelError) -> grpc.StatusCode:
    """The status code of a class or, where it has no row, of the nearest class above it."""
    return next((CODES[cls] for cls in type(error).__mro__ if cls in CODES), grpc.StatusCode.INTERNAL)


def trailers(status: Status) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries a status with its details."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _cut(text: str, max_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= max_bytes else encoded[: max_bytes - 3].decode("utf-8", "ignore") + "..."


def _short_facts(facts: Mapping[str, str]) -> dict[str, str]:
    return {key: _cut(str(facts[key]), MAX_FACT_BYTES) for key in list(facts)[:MAX_FACTS]}


def holders_fact(holders: tuple[paging.Holder, ...]) -> str:
    """Who holds what, largest first, as a JSON object of bytes by owner; the smallest are left out where it would be too long."""
    ranked = sorted(holders, key=lambda holder: (-holder.size_bytes, holder.owner))
    text = "{}"
    for end in range(1, len(ranked) + 1):
        longer = json.dumps({holder.owner: holder.size_bytes for holder in ranked[:end]})
        if len(longer) > MAX_FACT_BYTES:
            break
        text = longer
    return text


def remedies_fact(remedies: Sequence[Remedy]) -> str:
    """What would help, smallest change first, as a JSON array; the last are left out where it would be too long."""
    text = "[]"
    for end in range(1, len(remedies) + 1):
        items = [{**asdict(remedy), "action": remedy.action.value} for remedy in remedies[:end]]
        longer = json.dumps(items, separators=(",", ":"))
        if len(longer) > MAX_FACT_BYTES:
            break
        text = longer
    return text


def _with_remedies(facts: dict[str, str], error: paging.PagingError) -> dict[str, str]:
    if error.remedies:
        facts["remedy"] = error.remedies[0].text
        facts["remedies"] = remedies_fact(error.remedies)
    return facts


def _memory_exhausted(error: paging.OutOfFrames) -> kernel.KernelError:
    facts = {"tier": error.tier, "needed_bytes": str(error.needed_bytes), "free_bytes": str(error.free_bytes)}
    facts["holders"] = holders_fact(error.holders)
    return kernel.MemoryExhausted(str(error), facts=_with_remedies(facts, error), retry_after_s=MEMORY_RETRY_S)


def _cannot_fit(error: paging.NeverFits) -> kernel.KernelError:
    facts = {"tier": error.tier, "needed_bytes": str(error.needed_bytes), "limit_bytes": str(error.limit_bytes)}
    facts["holders"] = holders_fact(error.holders)
    return kernel.CannotFit(str(error), facts=_with_remedies(facts, error))


def _over_limit(error: paging.OverLimit) -> kernel.KernelError:
    facts = {"owner": error.owner, "tier": error.tier, "needed_bytes": str(error.needed_bytes)}
    facts |= {"limit_bytes": str(error.limit_bytes), "used_bytes": str(error.used_bytes)}
    return kernel.QuotaExceeded(str(error), facts=_with_remedies(facts, error))


def _device_full(error: driver.DeviceOutOfMemory) -> kernel.KernelError:
    facts = {"tier": "device", "needed_bytes": str(error.needed_bytes), "free_bytes": str(error.free_bytes)}
    return kernel.MemoryExhausted(str(error), reason="DEVICE_OUT_OF_MEMORY", facts=facts)


def _said_as(cls: type[kernel.KernelError], reason: str, retry_after_s: float | None = None) -> Callable[[Exception], kernel.KernelError]:
    def say(error: Exception) -> kernel.KernelError:
        return cls(str(error), reason=reason, retry_after_s=retry_after_s)

    return say


def _bad_option(error: driver.OptionUnknown) -> kernel.KernelError:
    return kernel.InvalidArgument("options", str(error))


# Errors of the lower floors that a caller can do something about. PlanRejected, WireError and UnknownSpace are bugs and have no row.
LOWER: dict[type, Callable[..., kernel.KernelError]] = {
    paging.OutOfFrames: _memory_exhausted,
    paging.NeverFits: _cannot_fit,
    paging.OverLimit: _over_limit,
    paging.GuaranteeConflict: _said_as(kernel.WrongState, "GUARANTEE_CONFLICT"),
    paging.PagePinned: _said_as(kernel.Conflict, "PAGE_PINNED"),
    driver.DriverNotFound: _said_as(kernel.WrongState, "DRIVER_NOT_FOUND"),
    driver.DriverUnavailable: _said_as(kernel.WrongState, "DRIVER_UNAVAILABLE"),
    driver.OptionUnknown: _bad_option,
    driver.OpUnsupported: _said_as(kernel.Unimplemented, "OP_UNSUPPORTED"),
    driver.ModelUnsupported: _said_as(kernel.WrongState, "MODEL_UNSUPPORTED"),
    driver.ModelCorrupt: _said_as(kernel.DataLoss, "MODEL_CORRUPT"),
    driver.StreamBroken: _said_as(kernel.DataLoss, "WEIGHTS_UNREADABLE"),
    driver.UnknownModel: _said_as(kernel.Unavailable, "MODEL_NOT_ON_DEVICE", WORKER_RETRY_S),
    driver.DeviceOutOfMemory: _device_full,
    driver.PageCorrupt: _said_as(kernel.DataLoss, "PAGE_CORRUPT"),
    driver.HostPageCorrupt: _said_as(kernel.DataLoss, "PAGE_CORRUPT"),
    driver.DeviceLost: _said_as(kernel.Unavailable, "DEVICE_LOST", WORKER_RETRY_S),
}
