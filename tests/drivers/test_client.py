"""The front's side on one end of a socket pair, a worker written by hand on the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from drivers.client import WorkerClient
from drivers.connection import Connection
from drivers.contract import Capabilities, InspectSpec, LoadedModel, LoadSpec, ModelSpec, Plan, RowRun, RowStart, Sampling, StepResult
from drivers.errors import DeviceLost, WireError
from drivers.wire import (
    MAX_MESSAGE_BYTES,
    Decoder,
    Failed,
    Hello,
    Inspect,
    Inspected,
    Load,
    Loaded,
    LoadProgress,
    Message,
    Opened,
    PlanFailed,
    PlanMessage,
    ShiftSlabs,
    Shutdown,
    SlabsShifted,
    StepDone,
    encode,
    front_decoder,
    worker_decoder,
)

HELLO = Hello(1, "cpu0", "fake", "", Capabilities("fake", "1", "fake", 1, ("float32",)))
MODEL = ModelSpec("A", "float32", 8, 16, 1, (), (), None, (), "n")
RESULT = StepResult((), 0.0, 0)
LOAD = LoadSpec(1, InspectSpec("/m"), (1,), (0,))
WAIT_S = 20.0


@dataclass
class Ear:
    """Hears what a device does, in order."""

    heard: list[object] = field(default_factory=list)
    lost: asyncio.Event = field(default_factory=asyncio.Event)

    def on_step(self, plan_seq: int, step_idx: int, is_last: bool, result: StepResult) -> None:
        self.heard.append((plan_seq, step_idx, is_last))

    def on_plan_failed(self, failed: PlanFailed) -> None:
        self.heard.append(failed.plan_seq)

    def on_lost(self, reason: str) -> None:
        self.heard.append(reason)
        self.lost.set()


class Worker:
    """A worker's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder: Decoder = worker_decoder()
        self._inbox: list[Message] = []

    def say(self, *messages: Message) -> None:
        self._sock.sendall(b"".join(map(encode, messages)))

    def say_raw(self, content: bytes) -> None:
        self._sock.sendall(content)

    async def hear(self) -> Message:
        while not self._inbox:
            chunk = await asyncio.get_running_loop().sock_recv(self._sock, 1 << 20)
            self._inbox += self._decoder.feed(chunk)
        return self._inbox.pop(0)

    def hang_up(self) -> None:
        self._sock.close()


Story = Callable[[WorkerClient, Ear, Worker], Awaitable[None]]


def tell(story: Story) -> None:
    """Run a story of a client, its listener and a worker by hand."""

    async def run() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        client = WorkerClient(Connection(near, front_decoder(), asyncio.get_running_loop()), HELLO, 1, Opened(HELLO.capabilities))
        ear = Ear()
        client.attach(ear)
        try:
            async with asyncio.timeout(WAIT_S):
                await story(client, ear, Worker(far))
        finally:
            client.hang_up()
            far.close()

    asyncio.run(run())


def ignore(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def test_answers_find_their_questions_whatever_the_order() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        told: list[tuple[int, int]] = []
        load = asyncio.ensure_future(client.load(LOAD, lambda done, total: told.append((done, total)), "key"))
        inspect = asyncio.ensure_future(client.inspect(InspectSpec("/m")))
        asked = [await worker.hear(), await worker.hear()]
        worker.say(Inspected(2, MODEL), LoadProgress(1, 5, 9), Loaded(1, LoadedModel(1, 9, 0.1)))

        assert asked == [Load(1, LOAD, "key"), Inspect(2, InspectSpec("/m"))]
        assert await inspect == MODEL
        assert await load == LoadedModel(1, 9, 0.1)
        assert told == [(5, 9)]

    tell(story)


def test_the_answer_to_a_cancelled_call_is_dropped() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        call = asyncio.ensure_future(client.load(LOAD, ignore))
        await worker.hear()
        call.cancel()
        worker.say(LoadProgress(1, 1, 9), Loaded(1, LoadedModel(1, 9, 0.1)), StepDone(1, 0, True, RESULT))
        while not ear.heard:
            await asyncio.sleep(0)

        assert ear.heard == [(1, 0, True)]

    tell(story)


def test_an_answer_of_the_wrong_kind_is_a_wire_error() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        call = asyncio.ensure_future(client.load(LOAD, ignore))
        await worker.hear()
        worker.say(Inspected(1, MODEL))

        with pytest.raises(WireError, match="Expected Loaded, got Inspected"):
            await call

    tell(story)


def test_what_was_said_before_the_end_is_heard_before_it_and_the_last_words_are_the_reason() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        worker.say(StepDone(1, 0, False, RESULT), PlanFailed(2, "PageCorrupt", "", (0,), 1), Failed(0, "DeviceLost", "It is on fire."))
        worker.hang_up()
        await ear.lost.wait()

        assert ear.heard == [(1, 0, False), 2, "It is on fire."]

    tell(story)


def test_garbage_is_the_end_of_a_worker() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        call = asyncio.ensure_future(client.inspect(InspectSpec("/m")))
        await worker.hear()
        worker.say_raw(b"\x01\x00\x00\x00\xc1")
        await ear.lost.wait()

        with pytest.raises(DeviceLost):
            await call
        assert len(ear.heard) == 1

    tell(story)


def test_a_listener_that_comes_too_late_still_hears_the_end() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        worker.hang_up()
        await ear.lost.wait()
        late = Ear()
        client.attach(late)
        await late.lost.wait()

        assert late.heard == ear.heard

    tell(story)


def test_a_plan_larger_than_the_socket_takes_arrives_whole_and_in_order() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        tokens = tuple(range(200_000))
        start = RowStart(0, 1, 0, tokens, ((1,),), Sampling())
        large = Plan(1, 1, starts=(start,), runs=(RowRun(0, 1),), num_steps=1)
        for seq in (1, 2):
            client.submit(Plan(1, seq, starts=large.starts))
        client.cut(2, 0)

        first, second, _ = await worker.hear(), await worker.hear(), await worker.hear()
        assert isinstance(first, PlanMessage)
        assert isinstance(second, PlanMessage)
        assert [first.plan.seq, second.plan.seq] == [1, 2]
        assert second.plan.starts[0].tokens == tokens

    tell(story)


def test_a_plan_over_the_limit_is_refused_and_nothing_is_sent() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        with pytest.raises(WireError, match="over the limit"):
            await client.inspect(InspectSpec("x" * MAX_MESSAGE_BYTES))
        client.submit(Plan(1, 1))

        assert await worker.hear() == PlanMessage(Plan(1, 1))

    tell(story)


def test_hanging_up_tells_the_listener_nothing_and_fails_what_waits() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        call = asyncio.ensure_future(client.inspect(InspectSpec("/m")))
        await worker.hear()
        client.hang_up()
        client.hang_up()

        with pytest.raises(DeviceLost):
            await call
        assert ear.heard == []

    tell(story)


def test_shutting_down_waits_for_the_worker_to_go() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        leaving = asyncio.ensure_future(client.shut_down(WAIT_S))
        assert await worker.hear() == Shutdown()
        assert not leaving.done()
        worker.hang_up()
        await leaving
        await client.shut_down(WAIT_S)

        assert ear.heard == ["It was shut down."]

    tell(story)


def test_slabs_are_shifted_once_the_worker_says_so() -> None:
    async def story(client: WorkerClient, ear: Ear, worker: Worker) -> None:
        call = asyncio.ensure_future(client.shift_slabs((3, 4), (5,)))
        request = await worker.hear()
        assert isinstance(request, ShiftSlabs)
        assert (request.gives, request.takes) == ((3, 4), (5,))
        worker.say(SlabsShifted(request.request_id))
        await call

    tell(story)
