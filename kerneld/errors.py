"""What the kernel says no with.

KernelError                 status that a caller sees (mapped in syscalls/status.py, nowhere else)
 +- InvalidArgument         INVALID_ARGUMENT     malformed whatever the state is
 +- OutOfRange              OUT_OF_RANGE         past a declared limit
 +- Unauthenticated         UNAUTHENTICATED      nobody
 +- PermissionDenied        PERMISSION_DENIED    somebody who may not
 +- NotFound                NOT_FOUND            no such thing, or not yours: never told which
 +- AlreadyExists           ALREADY_EXISTS
 +- WrongState              FAILED_PRECONDITION  the object's state forbids it now
 |   +- CannotFit           FAILED_PRECONDITION  could never be resident: needs, limit, holders
 |   +- Quarantined         FAILED_PRECONDITION  was aboard too many worker deaths
 +- QuotaExceeded           RESOURCE_EXHAUSTED   a limit of the tenant; carries retry_after_s
 |   +- QueueFull           RESOURCE_EXHAUSTED
 |   +- DiskFull            RESOURCE_EXHAUSTED
 |   +- MemoryExhausted     RESOURCE_EXHAUSTED   no frames now; names the holders
 +- Conflict                ABORTED              lost a race; nothing happened
 +- Unavailable             UNAVAILABLE          starting, worker restarting
 |   +- Draining            UNAVAILABLE
 +- DataLoss                DATA_LOSS            a checksum does not hold
 +- Unimplemented           UNIMPLEMENTED        this driver has no such operation

Every error has a `reason` (upper snake case, stable, for programs) and `facts` (strings, for programs); the text is for people. When one is
raised, nothing has changed.
"""

from __future__ import annotations

from collections.abc import Mapping


class KernelError(Exception):
    """The kernel refused a call."""

    reason = "KERNEL_ERROR"

    def __init__(
        self, message: str, *, reason: str = "", facts: Mapping[str, str] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).reason
        self.facts = dict(facts or {})
        self.retry_after_s = retry_after_s


class InvalidArgument(KernelError):
    """A field of the call is malformed, whatever the state is."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}", facts={"field": field})


class OutOfRange(KernelError):
    """The call goes past a declared limit."""

    reason = "OUT_OF_RANGE"


class Unauthenticated(KernelError):
    """The caller did not prove who it is."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(KernelError):
    """The principal lacks the permission for this verb."""

    reason = "PERMISSION_DENIED"


class NotFound(KernelError):
    """There is no such object, or it belongs to somebody else."""

    reason = "NOT_FOUND"

    def __init__(self, noun: str, name: str, hint: str = "") -> None:
        super().__init__(f"There is no {noun} {name!r}. {hint}".rstrip(), facts={"noun": noun, "name": name})


class AlreadyExists(KernelError):
    """The name is taken."""

    reason = "ALREADY_EXISTS"


class WrongState(KernelError):
    """The object's state forbids this call now."""

    reason = "WRONG_STATE"


class CannotFit(WrongState):
    """The request could never be resident on the device."""

    reason = "CANNOT_FIT"


class Quarantined(WrongState):
    """The request was aboard too many worker deaths and is not tried again."""

    reason = "QUARANTINED"


class QuotaExceeded(KernelError):
    """A limit of the tenant is reached."""

    reason = "QUOTA_EXCEEDED"


class QueueFull(QuotaExceeded):
    """The queue has no room for another request."""

    reason = "QUEUE_FULL"


class DiskFull(QuotaExceeded):
    """The state directory has no room left."""

    reason = "DISK_FULL"


class MemoryExhausted(QuotaExceeded):
    """No frame is free now."""

    reason = "MEMORY_EXHAUSTED"


class Conflict(KernelError):
    """The call lost a race, and nothing happened."""

    reason = "CONFLICT"


class Unavailable(KernelError):
    """The daemon cannot do this yet; try again with back-off."""

    reason = "UNAVAILABLE"


class Draining(Unavailable):
    """The daemon is draining and takes no new work."""

    reason = "DRAINING"


class DataLoss(KernelError):
    """Stored bytes do not hold their checksum."""

    reason = "DATA_LOSS"


class Unimplemented(KernelError):
    """This driver or daemon has no such operation."""

    reason = "UNIMPLEMENTED"
