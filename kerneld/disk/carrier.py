"""Carrier: one page between the host tier and the page file, checked on the way up. Called in threads; it touches nothing else.

A spill writes the host frame as it lies there. A fetch reads straight into the host frame, and then looks whether it is the page that was
asked for: header, key, space, size and payload checksum. What is not is zeroed, so that nobody reads bytes that are not his.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol

from drivers.errors import HostPageCorrupt
from drivers.hostmem import HostMemory, host_frame_bytes
from memory.page import Transfer


class FrameFile(Protocol):
    """What holds the frames of the disk tier."""

    def read(self, frame: int, target: memoryview) -> None:
        """Fill `target` with what lies in a frame. Raises: OSError."""

    def write(self, frame: int, source: memoryview) -> None:
        """Write a whole frame. Raises: OSError."""

    def punch(self, frame: int, size_bytes: int) -> None:
        """Make a hole of a frame. Raises: OSError."""


class Outcome(Enum):
    """How a transfer ended."""

    DONE = "done"
    CORRUPT = "corrupt"  # the page is not what it should be
    FAILED = "failed"  # the disk did not do it


class Carried(NamedTuple):
    """A transfer that has ended."""

    transfer: Transfer
    outcome: Outcome
    problem: str = ""


def carry(file: FrameFile, host: HostMemory, transfer: Transfer) -> Carried:
    """Do one transfer."""
    try:
        if transfer.is_fetch:
            _fetch(file, host, transfer)
        else:
            _spill(file, host, transfer)
    except HostPageCorrupt as error:
        return Carried(transfer, Outcome.CORRUPT, str(error))
    except OSError as error:
        return Carried(transfer, Outcome.FAILED, str(error))
    return Carried(transfer, Outcome.DONE)


def _spill(file: FrameFile, host: HostMemory, transfer: Transfer) -> None:
    header = host.peek(transfer.host_frame)
    if header is None or header.key != transfer.key:
        raise HostPageCorrupt(transfer.host_frame, "it does not hold the page that was to be spilled")
    with host.frame(transfer.host_frame, transfer.size_bytes) as image:
        file.write(transfer.disk_frame, image)


def _fetch(file: FrameFile, host: HostMemory, transfer: Transfer) -> None:
    """Raises: OSError, HostPageCorrupt; then the host frame is zeros."""
    frame = transfer.host_frame
    try:
        with host.frame(frame, transfer.size_bytes) as image:
            file.read(transfer.disk_frame, image)
        _check(host, transfer)
    except (OSError, HostPageCorrupt):
        host.zero(frame, transfer.size_bytes)
        raise


def _check(host: HostMemory, transfer: Transfer) -> None:
    """See that the page that was read is the one that was asked for. Raises: HostPageCorrupt."""
    frame, header = transfer.host_frame, host.peek(transfer.host_frame)
    if header is None:
        raise HostPageCorrupt(frame, "what came from the disk is no page")
    if header.key != transfer.key or header.num_tokens < transfer.num_tokens:
        raise HostPageCorrupt(frame, "what came from the disk is another page")
    if host_frame_bytes(header.payload_bytes, host.granule_bytes) != transfer.size_bytes:
        raise HostPageCorrupt(frame, f"what came from the disk has {header.payload_bytes} bytes, which is not the size of its space")
    is_older = header.boot_generation != host.boot_generation
    if header.space_id != transfer.space_id and not is_older:
        raise HostPageCorrupt(frame, f"what came from the disk is a page of space {header.space_id}, not {transfer.space_id}")
    host.payload(frame).release()
    if header.space_id != transfer.space_id:
        host.relabel(frame, transfer.space_id)
