"""What front and worker say to each other over a unix stream socket.

A frame on the wire is a u32 length, little endian, and that many bytes of msgpack: one tagged struct. Descriptors travel beside the
first byte of `Hello` and `Welcome` only (SCM_RIGHTS).

    worker                                                    front
      Hello        what I am, what I still hold    [memfd] ->
                                                           <- Welcome      your memory, my generation  [memfd]
      Opened       the driver has its memory               ->
      ------------------------------------------------------------------------------------------------
                                                           <- Inspect, Load, Park, Unload, ShiftSlabs   (request_id)
      Inspected, LoadProgress*, Loaded, Parked, Unloaded, SlabsShifted, Failed ->     (the same request_id)
                                                           <- PlanMessage, at most two unanswered
      StepDone, the last with is_last; or PlanFailed       ->
                                                           <- Cut, while a plan runs; Shutdown

Every plan is answered by exactly one of: a `StepDone` with `is_last`, or a `PlanFailed`; or by nothing at all when it is of an older
boot generation or was made before an abort. A plan of no steps is answered by `StepDone(step_idx=NO_STEP, is_last=True)`, when its moves
are made. `Failed` with request_id 0 answers nobody: it is the worker's last word.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

from drivers import errors
from drivers.contract import (
    CONTRACT_VERSION,
    Capabilities,
    CopyTimes,
    InspectSpec,
    LoadedModel,
    LoadSpec,
    ModelSpec,
    OpenSpec,
    Plan,
    StepResult,
)

MAX_MESSAGE_BYTES = 64 << 20  # a plan that seats a million pending tokens takes 5 MiB
NO_STEP = -1
RECEIVE_BYTES = 256 << 10

_LENGTH = struct.Struct("<I")


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Anything that crosses the socket."""


class HeldModel(msgspec.Struct, frozen=True):
    """A model that a worker kept while no front was there. `weights_key` is what the front called the weights when it loaded them."""

    weights_key: str
    spec: LoadSpec
    loaded: LoadedModel


class Hello(Message, frozen=True):
    """Worker to front, first: what it is, and what it still holds of an earlier front."""

    pid: int
    device: str
    driver: str
    secret: str
    capabilities: Capabilities
    boot_generation: int = 0  # of the front that it served last; 0: none
    opened: OpenSpec | None = None  # the memory that it holds; with host_bytes, the memfd is attached
    models: tuple[HeldModel, ...] = ()
    contract_version: int = CONTRACT_VERSION


class Welcome(Message, frozen=True):
    """Front to worker: serve me. With `open.host_bytes`, a memfd is attached unless the worker shall keep its own.

    A worker that holds exactly this memory keeps it and its models; any other opens its driver anew. Boot generations count from 1.
    """

    boot_generation: int
    open: OpenSpec


class Refused(Message, frozen=True):
    """Front to worker: no, and trying again is of no use."""

    detail: str


class Opened(Message, frozen=True):
    """Worker to front: ready for requests and plans. `models` lists what was kept, `copies` what was measured at open.

    `capabilities` are told again: the settings of an open may have chosen another device than the one that Hello spoke of.
    """

    capabilities: Capabilities
    models: tuple[HeldModel, ...] = ()
    copies: CopyTimes = CopyTimes()


class Inspect(Message, frozen=True):
    """Read what a model needs."""

    request_id: int
    spec: InspectSpec


class Inspected(Message, frozen=True):
    """Answers Inspect."""

    request_id: int
    model: ModelSpec


class Load(Message, frozen=True):
    """Load a model; steps go on meanwhile."""

    request_id: int
    spec: LoadSpec
    weights_key: str = ""


class LoadProgress(Message, frozen=True):
    """Says how far a load has come."""

    request_id: int
    bytes_done: int
    bytes_total: int


class Loaded(Message, frozen=True):
    """Answers Load."""

    request_id: int
    model: LoadedModel


class Unload(Message, frozen=True):
    """Forget a model, after the plans sent before."""

    request_id: int
    model_id: int


class Unloaded(Message, frozen=True):
    """Answers Unload."""

    request_id: int


class ShiftSlabs(Message, frozen=True):
    """After the plans sent before: let the device have the memory of some slabs, and have that of others again."""

    request_id: int
    gives: tuple[int, ...] = ()
    takes: tuple[int, ...] = ()


class SlabsShifted(Message, frozen=True):
    """Answers ShiftSlabs."""

    request_id: int


class Park(Message, frozen=True):
    """Copy the segments of a model to these bytes of the host tier; steps go on meanwhile."""

    request_id: int
    model_id: int
    host_offsets: tuple[int, ...]


class Parked(Message, frozen=True):
    """Answers Park."""

    request_id: int
    checksums: tuple[int, ...]


class Failed(Message, frozen=True):
    """A request failed with a DriverError, which comes out as the same class on the other side; or, with request_id 0, the worker."""

    request_id: int
    kind: str
    text: str
    facts: dict[str, int | str | tuple[int, ...]] = {}


class PlanMessage(Message, frozen=True):
    """Carry out a plan."""

    plan: Plan


class StepDone(Message, frozen=True):
    """One step of a plan has run; after the one with `is_last` none will."""

    plan_seq: int
    step_idx: int
    is_last: bool
    result: StepResult


class PlanFailed(Message, frozen=True):
    """A plan was aborted before its first step: some pages were corrupt, the other moves were made, rows were not touched.

    The worker drops what comes until a plan carries this `abort_count`, or a higher one.
    """

    plan_seq: int
    kind: str
    detail: str
    bad_move_idxs: tuple[int, ...]
    abort_count: int


class Cut(Message, frozen=True):
    """End the quantum of a plan as soon as step `after_step` is done; NO_STEP, or a step long done: at once."""

    plan_seq: int
    after_step: int


class Shutdown(Message, frozen=True):
    """Finish the plan at hand, give everything back, and exit with 0."""


ToFront = Hello | Opened | Inspected | LoadProgress | Loaded | Parked | Unloaded | SlabsShifted | Failed | StepDone | PlanFailed
ToWorker = Welcome | Refused | Inspect | Load | Park | Unload | ShiftSlabs | PlanMessage | Cut | Shutdown
_encoder = msgspec.msgpack.Encoder()
M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Return a message as it goes on the wire, length first. Raises: WireError, if it is too long."""
    frame = bytearray(_LENGTH.size)
    _encoder.encode_into(message, frame, _LENGTH.size)
    size_bytes = len(frame) - _LENGTH.size
    if size_bytes > MAX_MESSAGE_BYTES:
        raise errors.WireError(f"A {type(message).__name__} of {size_bytes} bytes is over the limit of {MAX_MESSAGE_BYTES}.")
    _LENGTH.pack_into(frame, 0, size_bytes)
    return bytes(frame)


class Decoder:
    """Turns a stream of bytes, cut anywhere, into messages of one direction. After a WireError the stream is of no more use."""

    def __init__(self, union: object, max_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(union)
        self._max_bytes = max_bytes
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> list[Message]:
        """Take the next bytes of the stream, and return the messages that are complete now. Raises: WireError."""
        self._pending += chunk
        messages: list[Message] = []
        start = 0
        with memoryview(self._pending) as view:
            while len(view) - start >= _LENGTH.size:
                end = start + _LENGTH.size + self._length(view, start)
                if end > len(view):
                    break
                messages.append(self._decode(view[start + _LENGTH.size : end]))
                start = end
        del self._pending[:start]
        return messages

    def _length(self, view: memoryview, start: int) -> int:
        size_bytes: int = _LENGTH.unpack_from(view, start)[0]
        if size_bytes > self._max_bytes:
            raise errors.WireError(f"A message of {size_bytes} bytes is over the limit of {self._max_bytes}.")
        return size_bytes

    def _decode(self, body: memoryview) -> Message:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.WireError(str(error)) from error
        finally:
            body.release()


def front_decoder() -> Decoder:
    """Return a decoder of what workers send."""
    return Decoder(ToFront)


def worker_decoder() -> Decoder:
    """Return a decoder of what the front sends."""
    return Decoder(ToWorker)


def expect(message: Message, kind: type[M]) -> M:
    """Return the message if it is of the kind that has to come now. Raises: WireError."""
    if not isinstance(message, kind):
        raise errors.WireError(f"Expected {kind.__name__}, got {type(message).__name__}.")
    return message
