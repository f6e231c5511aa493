"""Events: what happened, as values, once. Metrics, the log and the verb Events all live on them.

An event is a frozen dataclass in the past tense, with ids and numbers as fields: never a prompt, a token or a secret. Its class says how
loud its log line is: an `Event` belongs to somebody's life cycle (INFO), an `Action` is something that the system did by itself against a
trouble (WARNING), a `Detail` comes with every request (DEBUG). There is no event per token or per step. `kerneld.eventbus` carries them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from kerneld.calls import FinishReason, Priority


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    level: ClassVar[int] = logging.INFO


class Detail(Event):
    """Something that happens all the time."""

    __slots__ = ()
    level = logging.DEBUG


class Action(Event):
    """The system acted against a trouble."""

    __slots__ = ()
    level = logging.WARNING


# ------------------------------------------------------------------------------------------------------------------------- the daemon


@dataclass(frozen=True, slots=True)
class DaemonStarted(Event):
    """The daemon runs, and recovers what was acknowledged."""

    boot_generation: int
    version: str


@dataclass(frozen=True, slots=True)
class DaemonReady(Event):
    """The daemon takes calls."""

    num_contexts: int
    num_requests: int  # that go on where they stood


@dataclass(frozen=True, slots=True)
class DaemonDraining(Event):
    """The daemon takes no new work."""

    num_running: int
    num_queued: int


@dataclass(frozen=True, slots=True)
class DaemonStopped(Event):
    """The daemon ends."""

    num_left: int  # requests that go on at the next start


@dataclass(frozen=True, slots=True)
class IntegrityLost(Event):
    """A check of the kernel's own books failed."""

    level: ClassVar[int] = logging.ERROR
    check: str
    problem: str


# --------------------------------------------------------------------------------------------------------------------------- contexts


@dataclass(frozen=True, slots=True)
class ContextAllocated(Detail):
    """A context began."""

    context: str
    tenant: str
    model: str


@dataclass(frozen=True, slots=True)
class ContextForked(Detail):
    """A context began as a copy of another's past."""

    context: str
    parent: str
    tenant: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ContextFreed(Detail):
    """A context is gone."""

    context: str
    tenant: str


@dataclass(frozen=True, slots=True)
class ContextChanged(Detail):
    """A context was edited without a request."""

    context: str
    tenant: str
    change: str  # "suspended", "resumed", "truncated", "set", "granted", "revoked"


@dataclass(frozen=True, slots=True)
class ContextFailed(Action):
    """A context can be used no more."""

    context: str
    tenant: str
    failure: str


# --------------------------------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True)
class RequestArrived(Detail):
    """A request was accepted and waits."""

    request: str
    context: str
    tenant: str
    input_tokens: int
    max_tokens: int = 0  # of output; these and the following are what a simulation needs to send it again
    priority: Priority = Priority.INTERACTIVE
    nice: int = 0
    deadline_s: float = 0.0  # after its arrival; 0: none


@dataclass(frozen=True, slots=True)
class RequestDeferred(Detail):
    """A request waits behind a soft limit, beside the line."""

    request: str
    tenant: str
    seconds: float  # at most


@dataclass(frozen=True, slots=True)
class RequestAdmitted(Detail):
    """A request runs, for the first time or again."""

    request: str
    tenant: str
    queue_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class FirstTokenSampled(Detail):
    """A request has its first output token."""

    request: str
    tenant: str
    seconds: float  # since it arrived


@dataclass(frozen=True, slots=True)
class RequestPreempted(Detail):
    """A running request waits again."""

    request: str
    tenant: str
    cause: str  # "frames", "rows", "limit", "model"


@dataclass(frozen=True, slots=True)
class RequestFinished(Detail):
    """A request ended."""

    request: str
    context: str
    tenant: str
    reason: FinishReason
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    queue_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class RequestQuarantined(Action):
    """A request was aboard too many worker deaths and is not tried again."""

    request: str
    context: str
    tenant: str
    num_crashes: int


@dataclass(frozen=True, slots=True)
class QuotaRefused(Detail):
    """A call was refused by a limit."""

    tenant: str
    limit: str
    holder: str  # the tenant whose limit it is


# ----------------------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True, slots=True)
class PagesEvicted(Detail):
    """Pages left the device for a lower tier, or were dropped."""

    tenant: str
    num_pages: int
    num_dropped: int


@dataclass(frozen=True, slots=True)
class PagesRestored(Detail):
    """Pages came back to the device, or are computed again."""

    tenant: str
    num_pages: int
    num_recomputed: int


@dataclass(frozen=True, slots=True)
class PrefixLooked(Detail):
    """A request was seated: how many tokens of its own were missing, and how many of them it took from its sharing domain."""

    request: str
    tenant: str
    num_tokens: int
    num_shared: int


@dataclass(frozen=True, slots=True)
class PageFoundCorrupt(Action):
    """A page below the device did not hold its checksum; it is computed again."""

    context: str
    tenant: str
    page_idx: int


# ----------------------------------------------------------------------------------------------------------------- models and workers


@dataclass(frozen=True, slots=True)
class ModelLoaded(Event):
    """A model is resident."""

    model: str
    size_bytes: int
    seconds: float
    host_bytes: int = 0  # that came from the host tier
    copy_s: float = 0.0  # of the seconds, those that copying took
    num_corrupt: int = 0  # segments that did not hold in the host tier, and were read again
    device: str = ""


@dataclass(frozen=True, slots=True)
class ModelParked(Event):
    """The weights of a model are in the host tier."""

    model: str
    size_bytes: int
    seconds: float
    device: str = ""


@dataclass(frozen=True, slots=True)
class ModelEvicted(Event):
    """A model left the device for another one."""

    model: str
    size_bytes: int
    num_requests: int  # that run on it or wait for it
    is_parked: bool
    device: str = ""


@dataclass(frozen=True, slots=True)
class ModelUnloaded(Event):
    """A model is resident no more."""

    model: str
    size_bytes: int
    device: str = ""


@dataclass(frozen=True, slots=True)
class TariffChanged(Event):
    """A model was measured: requests that are admitted from now on pay other prices, in nanoseconds of device time per token."""

    model: str
    input_ns: int
    cached_ns: int
    output_ns: int
    context_ns: int  # per token that stands before a computed one


@dataclass(frozen=True, slots=True)
class ModelFailed(Action):
    """A model could not be loaded."""

    model: str
    failure: str
    device: str = ""


@dataclass(frozen=True, slots=True)
class WorkerStarted(Event):
    """A worker is connected and its device open."""

    device: str
    driver: str
    pid: int
    seconds: float  # since it was started, or waited for


@dataclass(frozen=True, slots=True)
class WorkerLost(Action):
    """A worker died, hung or broke the contract."""

    device: str
    pid: int
    cause: str
    num_requests: int  # aboard


@dataclass(frozen=True, slots=True)
class WorkerRecovered(Action):
    """The work of a lost worker goes on."""

    device: str
    seconds: float  # since it was lost
    num_requests: int
    pages_restored: int
    pages_recomputed: int


# ---------------------------------------------------------------------------------------------------------------- images and identity


@dataclass(frozen=True, slots=True)
class ImageWritten(Event):
    """A checkpoint left an image."""

    image: str
    context: str
    tenant: str
    num_pages: int
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ImageRestored(Event):
    """A context was made from an image."""

    image: str
    context: str
    tenant: str
    pages_restored: int
    pages_recomputed: int


@dataclass(frozen=True, slots=True)
class ImageDeleted(Event):
    """An image is gone."""

    image: str
    tenant: str


@dataclass(frozen=True, slots=True)
class TenantChanged(Event):
    """A tenant was added, changed or removed."""

    tenant: str
    change: str  # "added", "set", "removed"


@dataclass(frozen=True, slots=True)
class ShareFactorsChanged(Event):
    """What tenants used of late changed what their weights are multiplied by."""

    num_tenants: int
    least_milli: int  # of the new factors, in thousandths
    most_milli: int


@dataclass(frozen=True, slots=True)
class SharingGroupChanged(Event):
    """A sharing group was added, changed or removed."""

    group: str
    change: str  # "added", "set", "removed"
    num_members: int


@dataclass(frozen=True, slots=True)
class TokenAdded(Event):
    """An API token was issued."""

    token_id: str
    tenant: str


@dataclass(frozen=True, slots=True)
class TokenRemoved(Event):
    """An API token was revoked."""

    token_id: str
    tenant: str
