from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers import errors
from drivers.contract import (
    Capabilities,
    CopyTimes,
    FramePatch,
    InspectSpec,
    LoadedModel,
    LoadSpec,
    OpenSpec,
    Plan,
    RowResult,
    RowRun,
    RowStart,
    Sampling,
    StepResult,
    TokenLogprob,
)
from drivers.descriptors import receive_with_fd, send_with_fd
from drivers.failure import describe_error, restore_error
from drivers.hostmem import HostMemory
from drivers.wire import (
    MAX_MESSAGE_BYTES,
    NO_STEP,
    Cut,
    Decoder,
    Failed,
    HeldModel,
    Hello,
    Inspect,
    Load,
    LoadProgress,
    Message,
    Opened,
    PlanFailed,
    PlanMessage,
    Refused,
    Shutdown,
    StepDone,
    ToWorker,
    Unload,
    Unloaded,
    Welcome,
    encode,
    expect,
    front_decoder,
    worker_decoder,
)
from memory.page import Move, Tier, Zero

MEMORY = OpenSpec(num_slabs=1, slab_bytes=4096, granule_bytes=256, page_tokens=16, max_rows=4, max_step_tokens=64, options={"step_s": "1"})
PLAN = Plan(
    boot_generation=3,
    seq=7,
    abort_count=1,
    zeros=(Zero(1, Tier.HOST, 9),),
    moves=(Move(1, Tier.HOST, 4, Tier.DEVICE, 5, b"0123456789abcdef", 16),),
    clears=(2,),
    starts=(RowStart(3, 1, 16, (1, 2), ((8, 12), (4,)), Sampling(seed=2**64 - 1, stop_token_ids=(2,)), history=(5, 6)),),
    patches=(FramePatch(0, 0, 2, (77,)),),
    runs=(RowRun(3, 2),),
    num_steps=8,
)
SPEC = LoadSpec(1, InspectSpec("/models/m"), (1,), (0, 4096))
HELD = HeldModel("sha256:abc", SPEC, LoadedModel(1, 100, 0.5))
TO_WORKER: list[Message] = [
    Welcome(1, MEMORY),
    Refused("no"),
    Inspect(1, InspectSpec("/models/m", 128, "int8")),
    Load(2, SPEC, "sha256:abc"),
    Unload(3, 1),
    PlanMessage(PLAN),
    Cut(7, NO_STEP),
    Shutdown(),
]
RESULT = StepResult((RowResult(3, (9,), (TokenLogprob(-0.5, ((9, -0.5),)),), True),), 0.01, 2, copies=CopyTimes(4096, 0.001))
OFFER = Capabilities("cpu", "1", "cpu", 1 << 30, ("float32",))
TO_FRONT: list[Message] = [
    Hello(12, "cpu0", "cpu", "s", OFFER, 2, MEMORY, (HELD,)),
    Opened(OFFER, (HELD,), CopyTimes(1 << 20, 0.5, 1 << 21, 0.25)),
    LoadProgress(2, 1, 2),
    Unloaded(3),
    StepDone(7, 0, True, RESULT),
    PlanFailed(7, "PageCorrupt", "bad", (0, 2), 1),
    Failed(0, "DeviceLost", "gone", {"needed_bytes": 2**63, "name": "x", "move_idxs": (1, 2)}),
]


@settings(max_examples=60)
@given(cuts=st.lists(st.integers(0, 4000), max_size=30))
@pytest.mark.parametrize(("messages", "decoder"), [(TO_WORKER, worker_decoder), (TO_FRONT, front_decoder)])
def test_messages_come_out_whole_however_the_stream_is_cut(
    messages: list[Message], decoder: Callable[[], Decoder], cuts: list[int]
) -> None:
    stream = b"".join(map(encode, messages))
    borders = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    reader = decoder()

    received = [message for start, end in pairwise(borders) for message in reader.feed(stream[start:end])]

    assert received == messages


def test_one_byte_at_a_time_is_enough() -> None:
    reader = worker_decoder()
    assert [message for byte in encode(PlanMessage(PLAN)) for message in reader.feed(bytes([byte]))] == [PlanMessage(PLAN)]


@settings(max_examples=300)
@given(body=st.binary(max_size=300))
def test_garbage_is_a_wire_error_or_a_message_never_another_error(body: bytes) -> None:
    try:
        worker_decoder().feed(struct.pack("<I", len(body)) + body)
    except errors.WireError:
        return


@settings(max_examples=300)
@given(st.sampled_from(TO_WORKER), st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_message_is_a_wire_error_or_a_message_never_another_error(message: Message, position: int, flip: int) -> None:
    frame = bytearray(encode(message))
    frame[4 + position % (len(frame) - 4)] ^= flip
    try:
        worker_decoder().feed(bytes(frame))
    except errors.WireError:
        return


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x93\x01\x02\x03", encode(TO_FRONT[0])[4:]])
def test_what_is_no_message_of_this_direction_is_a_wire_error(body: bytes) -> None:
    with pytest.raises(errors.WireError):
        worker_decoder().feed(struct.pack("<I", len(body)) + body)


def test_an_over_long_message_is_refused_before_its_body_comes() -> None:
    with pytest.raises(errors.WireError, match="over the limit"):
        worker_decoder().feed(struct.pack("<I", MAX_MESSAGE_BYTES + 1))
    with pytest.raises(errors.WireError, match="over the limit of 8"):
        Decoder(ToWorker, max_bytes=8).feed(encode(Refused("much too long")))


def test_an_over_long_message_is_not_encoded() -> None:
    with pytest.raises(errors.WireError, match="A Refused of"):
        encode(Refused("x" * (MAX_MESSAGE_BYTES + 1)))


@pytest.mark.parametrize(
    "error",
    [
        errors.DeviceOutOfMemory(needed_bytes=100, free_bytes=7, detail="of the arena"),
        errors.PageCorrupt((0, 3)),
        errors.ModelUnsupported("hidden_act is 'relu'."),
        errors.UnknownModel("It has id 3."),
        errors.DriverError("plain"),
        errors.HostPageCorrupt(3, "torn"),
    ],
)
def test_an_error_comes_out_as_the_same_class_with_the_same_facts(error: errors.DriverError) -> None:
    (failed,) = front_decoder().feed(encode(describe_error(4, error)))
    restored = restore_error(expect(failed, Failed))

    assert type(restored) is type(error)
    assert str(restored) == str(error)
    assert vars(restored) == vars(error)


def test_an_error_class_that_only_its_driver_knows_travels_as_the_nearest_known_one() -> None:
    class OutOfTensorCores(errors.DeviceLost):
        """No core is left."""

    assert type(restore_error(describe_error(1, OutOfTensorCores()))) is errors.DeviceLost


@pytest.mark.parametrize("kind", ["NoSuchError", "annotations", "__doc__"])
def test_an_unknown_error_name_comes_out_as_a_driver_error(kind: str) -> None:
    assert type(restore_error(Failed(1, kind, "text"))) is errors.DriverError


def test_a_host_tier_travels_beside_a_message() -> None:
    near, far = socket.socketpair()
    tier = HostMemory.create(4096, 256)
    tier.write_page(2, b"page", b"0123456789abcdef", 1, 5)

    send_with_fd(near, TO_WORKER[0], tier.fd)
    chunk, fd = receive_with_fd(far)

    assert worker_decoder().feed(chunk) == [TO_WORKER[0]]
    assert fd is not None
    assert not os.get_inheritable(fd)
    received = HostMemory(fd, 4096, 256)
    with received.payload(2) as payload:
        assert bytes(payload) == b"page"
    for thing in (received, tier, near, far):
        thing.close()


def test_the_wrong_message_at_its_turn_is_a_wire_error() -> None:
    with pytest.raises(errors.WireError, match="Expected Welcome, got Shutdown"):
        expect(Shutdown(), Welcome)
