"""What a call can fail with.

KerneldError                  .code (grpc.StatusCode), .reason, .facts, .retry_after_s, .message
 +- InvalidArgument           .field, .problem: malformed whatever the state is; fix the call
 +- OutOfRange                past a declared limit; shorten the call
 +- Unauthenticated           nobody
 +- PermissionDenied          somebody who may not; ask for a grant
 +- NotFound                  no such thing, or not yours
 +- AlreadyExists             the name is taken
 +- WrongState                the object's state forbids it now; change the state first
 |   +- CannotFit             and DeviceOutOfMemory: could never be resident
 |   +- Quarantined           was aboard too many worker deaths
 +- QuotaExceeded             .retry_after_s, .tenant: a limit is reached; wait
 |   +- QueueFull
 |   +- DiskFull
 |   +- MemoryExhausted       and DeviceOutOfMemory: no room now
 +- DeviceOutOfMemory         .holders, .needed_bytes, .limit_bytes, .free_bytes: catches both of the above
 +- Conflict                  lost a race, nothing happened; retry at once
 +- Unavailable               starting, worker restarting, or no connection; retry with back-off
 |   +- Draining              takes no new work
 +- DataLoss                  a checksum does not hold
 +- Unimplemented             this daemon has no such operation
 +- DeadlineExceeded          the caller's own limit
 +- Cancelled                 the caller's own wish
 +- Internal                  .error_id: a bug in kerneld; the id is in its log

Raised by the client itself, with the same classes: Unavailable (no daemon there), InvalidArgument (a value that no message can hold, a
target that is not one). An error whose `reason` is empty was made on the way, by the transport, and not by kerneld.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc

DOMAIN = "kerneld"
DETAILS_KEY = "grpc-status-details-bin"


class KerneldError(Exception):
    """A call failed."""

    default_code = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        facts: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).default_code
        self.reason = reason
        self.facts = dict(facts or {})
        self.retry_after_s = retry_after_s

    @property
    def remedies(self) -> list[dict[str, Any]]:
        """What would help, the smallest change first: action, tier, size_bytes, owner, subject. Empty where the daemon did not say."""
        return list(json.loads(self.facts.get("remedies", "[]")))

    def _bytes(self, name: str) -> int | None:
        text = self.facts.get(name, "")
        return int(text) if text.isascii() and text.isdigit() else None


class InvalidArgument(KerneldError):
    """A field of the call is malformed, whatever the state is."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT

    @classmethod
    def of(cls, field: str, problem: str) -> InvalidArgument:
        """The error of one field, found before anything was sent."""
        return cls(f"{field}: {problem}", reason="INVALID_ARGUMENT", facts={"field": field})

    @property
    def field(self) -> str:
        """Path of the field, such as "sampling.top_p"."""
        return self.facts.get("field", "")

    @property
    def problem(self) -> str:
        """What is wrong with it."""
        return self.message.removeprefix(f"{self.field}: ")


class OutOfRange(KerneldError):
    """The call goes past a declared limit."""

    default_code = grpc.StatusCode.OUT_OF_RANGE


class Unauthenticated(KerneldError):
    """The caller did not prove who it is."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(KerneldError):
    """The principal lacks the permission for this verb."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class NotFound(KerneldError):
    """There is no such object, or it belongs to somebody else."""

    default_code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(KerneldError):
    """The name is taken."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class WrongState(KerneldError):
    """The object's state forbids this call now."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class Quarantined(WrongState):
    """The request was aboard too many worker deaths and is not tried again."""


class QuotaExceeded(KerneldError):
    """A limit is reached; `retry_after_s`, where known, says when to try again."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED

    @property
    def tenant(self) -> str:
        """Whose limit it is."""
        return self.facts.get("tenant") or self.facts.get("owner", "")


class QueueFull(QuotaExceeded):
    """The queue has no room for another request."""


class DiskFull(QuotaExceeded):
    """The state directory has no room left."""


class DeviceOutOfMemory(KerneldError):
    """There is no room on the device, now or ever; the numbers say who holds it."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED

    @property
    def needed_bytes(self) -> int | None:
        """What the call needs."""
        return self._bytes("needed_bytes")

    @property
    def limit_bytes(self) -> int | None:
        """What it could have at most."""
        return self._bytes("limit_bytes")

    @property
    def free_bytes(self) -> int | None:
        """What is free or could be reclaimed now."""
        return self._bytes("free_bytes")

    @property
    def holders(self) -> dict[str, int]:
        """Who holds how many bytes, largest first; empty where the daemon did not say."""
        try:
            holders = json.loads(self.facts.get("holders", "{}"))
        except ValueError:
            return {}
        return {str(owner): int(size) for owner, size in holders.items()} if isinstance(holders, dict) else {}


class CannotFit(WrongState, DeviceOutOfMemory):
    """The request could never be resident on the device."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class MemoryExhausted(QuotaExceeded, DeviceOutOfMemory):
    """No room is free now."""


class Conflict(KerneldError):
    """The call lost a race, and nothing happened."""

    default_code = grpc.StatusCode.ABORTED


class Unavailable(KerneldError):
    """The daemon cannot do this yet, or cannot be reached."""

    default_code = grpc.StatusCode.UNAVAILABLE


class Draining(Unavailable):
    """The daemon is draining and takes no new work."""


class DataLoss(KerneldError):
    """Stored bytes do not hold their checksum."""

    default_code = grpc.StatusCode.DATA_LOSS


class Unimplemented(KerneldError):
    """This driver or daemon has no such operation."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class DeadlineExceeded(KerneldError):
    """The call took longer than the caller allowed."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(KerneldError):
    """The caller took the call back."""

    default_code = grpc.StatusCode.CANCELLED


class Internal(KerneldError):
    """A bug in kerneld."""

    default_code = grpc.StatusCode.INTERNAL

    @property
    def error_id(self) -> str:
        """What to look for in the daemon's log."""
        return self.facts.get("error_id", "")


BY_CODE: dict[grpc.StatusCode, type[KerneldError]] = {
    cls.default_code: cls
    for cls in (
        InvalidArgument,
        OutOfRange,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        WrongState,
        QuotaExceeded,
        Conflict,
        Unavailable,
        DataLoss,
        Unimplemented,
        DeadlineExceeded,
        Cancelled,
        Internal,
    )
}
BY_REASON: dict[str, type[KerneldError]] = {
    "CANNOT_FIT": CannotFit,
    "QUARANTINED": Quarantined,
    "QUEUE_FULL": QueueFull,
    "DISK_FULL": DiskFull,
    "MEMORY_EXHAUSTED": MemoryExhausted,
    "DEVICE_OUT_OF_MEMORY": MemoryExhausted,
    "DRAINING": Draining,
}


def from_rpc_error(error: grpc.RpcError) -> KerneldError:
    """The typed exception of a failed call."""
    code: grpc.StatusCode = error.code()
    reason, facts, retry_after_s = _read_details(error.trailing_metadata())
    cls = BY_REASON.get(reason) or BY_CODE.get(code, KerneldError)
    return cls(error.details() or cls.__doc__ or "", code=code, reason=reason, facts=facts, retry_after_s=retry_after_s)


def _read_details(trailers: Any) -> tuple[str, dict[str, str], float | None]:
    from google.rpc import error_details_pb2, status_pb2

    reason, facts, retry_after_s = "", dict[str, str](), None
    for key, value in trailers or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        for packed in status_pb2.Status.FromString(value).details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if packed.Unpack(info) and info.domain == DOMAIN:
                reason, facts = info.reason, dict(info.metadata)
            elif packed.Unpack(retry):
                retry_after_s = retry.retry_delay.ToMicroseconds() / 1e6
    return reason, facts, retry_after_s
