"""What can go wrong on the device side.

DriverError
 +- DriverNotFound        no driver of that name
 +- DriverUnavailable     the driver is there, the device or a library is not
 +- OptionUnknown         a setting that the driver does not know, or a value that it does not take
 +- OpUnsupported         the driver has no such op
 +- ModelUnsupported      a config field that no driver code covers
 +- ModelCorrupt          the files do not hold together
 +- UnknownModel          a model id that is not loaded
 +- DeviceOutOfMemory     the device has less than was asked for
 +- PageCorrupt           a page did not hold its checksum or key
 +- HostPageCorrupt       the same, told of one frame of the host tier
 +- HostTierInvalid       a descriptor that is not the host tier it was said to be
 +- PlanRejected          a plan that breaks the contract: a bug in the kernel
 +- StreamBroken          weights of a streamed model could not be read
 +- DeviceLost            the worker or its device is gone
 +- WireError             bytes on the worker socket that are not a message

A class docstring is the first sentence that a user reads; facts are attributes and follow in the text.
"""

from __future__ import annotations


class DriverError(Exception):
    """The device driver failed."""

    def __init__(self, detail: str = "") -> None:
        self.detail = detail
        headline = (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(f"{headline} {detail}".strip())


class DriverNotFound(DriverError):
    """There is no driver of that name."""


class DriverUnavailable(DriverError):
    """The driver cannot run on this machine."""


class OptionUnknown(DriverError):
    """The driver refuses its settings."""


class OpUnsupported(DriverError):
    """The driver has no such operation."""


class ModelUnsupported(DriverError):
    """This model cannot be run here."""


class ModelCorrupt(DriverError):
    """The model's files do not hold together."""


class UnknownModel(DriverError):
    """This model is not loaded on the device."""


class DeviceOutOfMemory(DriverError):
    """The device has less free memory than was asked for."""

    def __init__(self, needed_bytes: int, free_bytes: int, detail: str = "") -> None:
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(f"Needed {needed_bytes} bytes, {free_bytes} are free. {detail}".strip())


class PageCorrupt(DriverError):
    """A page in the host tier did not hold its checksum or its key."""

    def __init__(self, move_idxs: tuple[int, ...]) -> None:
        self.move_idxs = move_idxs
        super().__init__(f"Moves {list(move_idxs)} of the plan were not made; the pages have to be recomputed.")


class HostPageCorrupt(DriverError):
    """A frame of the host tier does not hold the page that was asked for."""

    def __init__(self, frame: int, detail: str) -> None:
        self.frame = frame
        super().__init__(f"Frame {frame}: {detail}")


class HostTierInvalid(DriverError):
    """The descriptor is not a host tier of the size that was said."""


class PlanRejected(DriverError):
    """A plan broke the driver contract."""


class StreamBroken(DriverError):
    """The weights of a model that is streamed could not be read; load it again."""


class DeviceLost(DriverError):
    """The device or its worker process is gone."""


class WireError(DriverError):
    """The worker socket carried something that is not a message."""
