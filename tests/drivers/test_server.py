"""The worker's side, in this process: a Server on one end of a socket pair, a front written by hand on the other."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from drivers.contract import (
    CopyTimes,
    InspectSpec,
    LoadedModel,
    LoadSpec,
    ModelSpec,
    OpenSpec,
    Plan,
    RowRun,
    RowStart,
    Sampling,
    StepResult,
)
from drivers.errors import UnknownModel
from drivers.failure import restore_error
from drivers.fake import FakeDriver
from drivers.fake_model import FakeModel, continuation
from drivers.hostmem import HostMemory
from drivers.server import Ending, Held, Server, StopFlag
from drivers.wire import (
    NO_STEP,
    Cut,
    Failed,
    HeldModel,
    Inspect,
    Inspected,
    Load,
    Loaded,
    LoadProgress,
    Message,
    PlanFailed,
    PlanMessage,
    Refused,
    ShiftSlabs,
    Shutdown,
    SlabsShifted,
    StepDone,
    Unload,
    Unloaded,
    encode,
    front_decoder,
    worker_decoder,
)
from memory.page import Move, Tier

GREEDY = Sampling(temperature=0.0)
GRANULE = 4096
PROMPT = (5, 6, 7)
WAIT_S = 20.0
GENERATION = 4
TRIPPING = "/models/that/trip/the/parser"


class GatedDriver(FakeDriver):
    """A driver whose steps and loads wait until the test lets them go."""

    def __init__(self) -> None:
        super().__init__()
        self.step_gate = threading.Semaphore(0)
        self.load_gate = threading.Semaphore(0)
        self.is_loading = threading.Event()
        self.applied: list[int] = []

    def apply(self, plan: Plan) -> None:
        super().apply(plan)
        self.applied.append(plan.seq)

    def copied(self) -> CopyTimes:
        return CopyTimes(up_bytes=len(self.applied))

    def step(self, step_idx: int) -> StepResult:
        assert self.step_gate.acquire(timeout=WAIT_S)
        return super().step(step_idx)

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        if spec.path == TRIPPING:
            raise ValueError("a secret of the file")
        return super().inspect(spec)

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        self.is_loading.set()
        assert self.load_gate.acquire(timeout=WAIT_S)
        return super().load(spec, progress)

    def let_steps(self, count: int) -> None:
        self.step_gate.release(count)

    def let_loads(self, count: int) -> None:
        self.load_gate.release(count)


class Front:
    """A server that runs in a thread, and the front's end of its socket."""

    def __init__(self, held: Held, driver: GatedDriver, path: Path, generation: int = GENERATION) -> None:
        self.held = held
        self.driver = driver
        self.path = path
        self.stop = StopFlag()
        self.endings: list[Ending] = []
        self._sock, far = socket.socketpair()
        self._sock.settimeout(WAIT_S)
        self._far = far
        self._decoder = front_decoder()
        self._inbox: list[Message] = []
        self.server = Server(far, worker_decoder(), held, generation, self.stop)
        self._thread = threading.Thread(target=lambda: self.endings.append(self.server.serve()))
        self._thread.start()

    def send(self, *messages: Message) -> None:
        self._sock.sendall(b"".join(map(encode, messages)))

    def send_raw(self, content: bytes) -> None:
        self._sock.sendall(content)

    def receive(self) -> Message:
        while not self._inbox:
            chunk = self._sock.recv(65536)
            assert chunk, "the server hung up"
            self._inbox += self._decoder.feed(chunk)
        return self._inbox.pop(0)

    def load(self) -> None:
        self.driver.let_loads(1)
        self.send(Load(1, load_spec(self.path)))
        while not isinstance(self.receive(), Loaded):
            pass

    def hang_up(self) -> None:
        self._sock.close()

    def ending(self) -> Ending:
        self._thread.join(WAIT_S)
        return self.endings[0]

    def close(self) -> None:
        self.driver.let_steps(1000)
        self.driver.let_loads(1000)
        self._sock.close()
        self._thread.join(WAIT_S)
        self.server.side.thread.join(WAIT_S)
        self._far.close()
        self.stop.close()
        self.driver.close()


@pytest.fixture
def host() -> Iterator[HostMemory]:
    memory = HostMemory.create(64 * GRANULE, GRANULE)
    yield memory
    memory.close()


@pytest.fixture
def start(tmp_path: Path, host: HostMemory) -> Iterator[Callable[..., Front]]:
    fronts: list[Front] = []

    def begin(**options: str) -> Front:
        spec = OpenSpec(4, 1 << 18, GRANULE, 16, 8, 64, host_bytes=host.size_bytes, options=options)
        driver = GatedDriver()
        driver.open(spec, os.dup(host.fd))
        fronts.append(Front(Held(driver, spec), driver, tmp_path))
        return fronts[-1]

    yield begin
    for front in fronts:
        front.close()


def load_spec(path: Path, model_id: int = 1) -> LoadSpec:
    return LoadSpec(model_id, InspectSpec(str(path)), (10 * model_id,), tuple((model_id * 16 + 4 * idx) * GRANULE for idx in range(4)))


def plan(seq: int, num_steps: int = 0, **changes: object) -> Plan:
    return msgspec.structs.replace(Plan(GENERATION, seq, num_steps=num_steps), **changes)


def seating(seq: int, num_steps: int, slot: int = 0) -> Plan:
    """A plan that seats the prompt and runs it."""
    start = RowStart(slot, 1, 0, PROMPT, ((100 + 4 * slot, 101 + 4 * slot),), GREEDY)
    return plan(seq, num_steps, starts=(start,), runs=(RowRun(slot, len(PROMPT)),))


def tokens_of(message: Message) -> tuple[int, ...]:
    assert isinstance(message, StepDone)
    return tuple(token for row in message.result.rows for token in row.tokens)


def test_each_step_is_answered_and_the_last_says_so(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.driver.let_steps(4)
    front.send(PlanMessage(seating(1, num_steps=4)))

    answers = [front.receive() for _ in range(4)]

    assert [(a.plan_seq, a.step_idx, a.is_last) for a in answers if isinstance(a, StepDone)] == [
        (1, 0, False),
        (1, 1, False),
        (1, 2, False),
        (1, 3, True),
    ]
    assert [token for answer in answers for token in tokens_of(answer)] == continuation(FakeModel(), PROMPT, 4, GREEDY)


def test_a_plan_of_no_steps_is_answered_once_it_is_carried_out(start: Callable[..., Front]) -> None:
    front = start()
    front.send(PlanMessage(plan(1)))

    assert front.receive() == StepDone(1, NO_STEP, True, StepResult((), 0.0, 0, copies=CopyTimes(1)))
    assert front.driver.applied == [1]


def test_the_first_answer_to_a_plan_tells_what_it_copied(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.driver.let_steps(3)
    front.send(PlanMessage(seating(1, num_steps=3)))

    answers = [front.receive() for _ in range(3)]

    assert [answer.result.copies for answer in answers if isinstance(answer, StepDone)] == [CopyTimes(1), CopyTimes(), CopyTimes()]


def test_a_cut_ends_the_quantum_after_its_step(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.send(PlanMessage(seating(1, num_steps=8)))
    front.driver.let_steps(1)
    first = front.receive()
    front.send(Cut(1, after_step=2))
    front.driver.let_steps(7)
    second, third = front.receive(), front.receive()
    front.send(PlanMessage(plan(2, 1, runs=(RowRun(0, 1),))))
    following = front.receive()

    assert isinstance(first, StepDone)
    assert isinstance(second, StepDone)
    assert isinstance(third, StepDone)
    assert [first.is_last, second.is_last, third.is_last] == [False, False, True]  # invariant 3
    tokens = [token for answer in (first, second, third, following) for token in tokens_of(answer)]
    assert tokens == continuation(FakeModel(), PROMPT, 4, GREEDY)


def test_a_cut_for_a_step_long_done_ends_the_quantum_at_once(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.send(PlanMessage(seating(1, num_steps=8)))
    front.driver.let_steps(2)
    front.receive(), front.receive()
    front.send(Cut(1, after_step=NO_STEP))
    front.driver.let_steps(6)
    last = front.receive()

    assert isinstance(last, StepDone)
    assert (last.step_idx, last.is_last) == (2, True)


def test_a_cut_of_a_queued_plan_waits_for_it(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.send(PlanMessage(seating(1, num_steps=2)), PlanMessage(plan(2, 8, runs=(RowRun(0, 1),))), Cut(2, after_step=0))
    front.driver.let_steps(10)
    answers = [front.receive() for _ in range(3)]

    assert [(a.plan_seq, a.is_last) for a in answers if isinstance(a, StepDone)] == [(1, False), (1, True), (2, True)]


def test_a_quantum_ends_when_no_row_goes_on(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    stop_at = continuation(FakeModel(), PROMPT, 2, GREEDY)[1]
    seated = seating(1, num_steps=8)
    row = msgspec.structs.replace(seated.starts[0], sampling=Sampling(temperature=0.0, stop_token_ids=(stop_at,)))
    front.driver.let_steps(8)
    front.send(PlanMessage(msgspec.structs.replace(seated, starts=(row,))))
    front.receive()
    last = front.receive()

    assert isinstance(last, StepDone)
    assert last.is_last
    assert last.result.rows[0].is_stopped


def test_plans_of_another_boot_generation_are_dropped(start: Callable[..., Front]) -> None:
    front = start()
    front.send(PlanMessage(Plan(GENERATION - 1, 9)), PlanMessage(plan(1)))

    answer = front.receive()

    assert isinstance(answer, StepDone)
    assert answer.plan_seq == 1
    assert front.driver.applied == [1]  # invariant 1


def test_a_corrupt_page_voids_every_plan_until_the_abort_count_rises(start: Callable[..., Front], host: HostMemory) -> None:
    front = start()
    front.load()
    key = b"0123456789abcdef"
    good, bad = Move(10, Tier.HOST, 0, Tier.DEVICE, 120, key, 16), Move(10, Tier.HOST, 4, Tier.DEVICE, 121, key, 16)
    host.write_page(0, bytes(GRANULE), key, 16, 10)
    front.driver.let_steps(1)
    front.send(PlanMessage(plan(1, moves=(good, bad))), PlanMessage(plan(2)))

    failed = front.receive()
    front.send(PlanMessage(plan(3)), PlanMessage(plan(4, abort_count=1)))
    answer = front.receive()

    assert isinstance(failed, PlanFailed)
    assert (failed.plan_seq, failed.kind, failed.bad_move_idxs, failed.abort_count) == (1, "PageCorrupt", (1,), 1)
    assert isinstance(answer, StepDone)
    assert answer.plan_seq == 4  # invariants 1 and 2
    assert front.driver.applied == [4]


def test_a_third_plan_breaks_the_contract(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.send(PlanMessage(seating(1, 2)), PlanMessage(plan(2)), PlanMessage(plan(3)))
    front.driver.let_steps(2)
    answers = [front.receive()]
    while not isinstance(answers[-1], Failed):
        answers.append(front.receive())

    assert "Plan 3 came while 2 plans were unanswered" in answers[-1].text
    assert front.ending() is Ending.BROKEN


def test_a_plan_out_of_order_breaks_the_contract(start: Callable[..., Front]) -> None:
    front = start()
    front.send(PlanMessage(plan(5)), PlanMessage(plan(5)))
    answers = [front.receive()]
    while not isinstance(answers[-1], Failed):
        answers.append(front.receive())

    assert "Plan 5 came after plan 5" in answers[-1].text
    assert front.ending() is Ending.BROKEN


def test_a_message_of_the_handshake_has_no_place_later(start: Callable[..., Front]) -> None:
    front = start()
    front.send(Refused("too late"))

    assert front.ending() is Ending.FRONT_LOST


def test_a_parser_that_trips_costs_its_request_only(start: Callable[..., Front], caplog: pytest.LogCaptureFixture) -> None:
    front = start()
    front.send(Inspect(1, InspectSpec(TRIPPING)), PlanMessage(plan(1)))
    answers = {type(answer): answer for answer in (front.receive(), front.receive())}

    failed = answers[Failed]
    assert isinstance(failed, Failed)
    assert (failed.request_id, failed.kind) == (1, "DriverError")
    assert "secret" not in failed.text
    assert StepDone in answers
    assert [record.getMessage() for record in caplog.records] == ["Request failed"]


def test_a_load_goes_on_and_is_remembered_when_its_front_goes(start: Callable[..., Front]) -> None:
    front = start()
    front.send(Load(1, load_spec(front.path), "weights"))
    assert front.driver.is_loading.wait(WAIT_S)
    front.hang_up()
    assert front.ending() is Ending.FRONT_LOST
    front.driver.let_loads(1)
    front.server.side.thread.join(WAIT_S)

    assert list(front.held.models) == [1]  # invariant 4


def test_steps_run_while_a_model_loads(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.driver.let_steps(3)
    front.send(Load(2, load_spec(front.path, model_id=2), "weights"), PlanMessage(seating(1, 3)))
    steps = [front.receive() for _ in range(3)]
    front.driver.let_loads(1)
    told = [front.receive() for _ in range(5)]

    assert all(isinstance(step, StepDone) for step in steps)
    assert [isinstance(message, LoadProgress) for message in told] == [True] * 4 + [False]
    assert isinstance(told[-1], Loaded)
    assert front.held.models[2] == HeldModel("weights", load_spec(front.path, model_id=2), told[-1].model)  # invariant 4


def test_an_unload_waits_for_the_plans_before_it(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.driver.let_steps(1)
    front.send(PlanMessage(seating(1, 1)), PlanMessage(plan(2, clears=(0,))), Unload(7, 1))

    answers = [front.receive() for _ in range(3)]

    assert [type(answer) for answer in answers] == [StepDone, StepDone, Unloaded]
    assert front.held.models == {}


def test_a_refused_request_comes_back_as_its_error_and_hurts_nobody(start: Callable[..., Front]) -> None:
    front = start()
    front.send(Unload(3, 8), Inspect(4, InspectSpec("/no/such/model")), Inspect(5, InspectSpec(str(front.path))))
    answers = {getattr(answer, "request_id", 0): answer for answer in (front.receive() for _ in range(3))}

    unload, inspect = answers[3], answers[4]
    assert isinstance(unload, Failed)
    assert isinstance(restore_error(unload), UnknownModel)
    assert isinstance(inspect, Failed)
    assert inspect.kind == "ModelCorrupt"
    assert isinstance(answers[5], Inspected)


def test_a_driver_that_breaks_says_so_without_details_and_ends_the_server(
    start: Callable[..., Front], caplog: pytest.LogCaptureFixture
) -> None:
    front = start(error_token="6")
    front.load()
    front.driver.let_steps(1)
    front.send(PlanMessage(seating(1, 1)))

    last_words = front.receive()

    assert isinstance(last_words, Failed)
    assert (last_words.request_id, last_words.kind) == (0, "DeviceLost")
    assert front.ending() is Ending.BROKEN  # invariant 5
    assert [record.getMessage() for record in caplog.records] == ["Driver failed"]


def test_a_front_that_goes_leaves_the_driver_open_with_its_models(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.driver.let_steps(8)
    front.send(PlanMessage(seating(1, 1)))
    front.receive()
    front.hang_up()

    assert front.ending() is Ending.FRONT_LOST
    assert list(front.held.models) == [1]
    assert front.held.slots == {0}  # invariant 4


def test_garbage_from_the_front_is_a_lost_front(start: Callable[..., Front]) -> None:
    front = start()
    front.send_raw(b"\x03\x00\x00\x00abc")

    assert front.ending() is Ending.FRONT_LOST


def test_rows_of_an_earlier_front_are_cleared_before_the_first_plan(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.driver.let_steps(8)
    front.send(PlanMessage(seating(1, 1)))
    front.receive()
    front.hang_up()
    front.ending()

    second = Front(front.held, front.driver, front.path, GENERATION + 1)
    second.send(PlanMessage(msgspec.structs.replace(seating(1, 4), boot_generation=GENERATION + 1)))
    tokens = [token for _ in range(4) for token in tokens_of(second.receive())]

    second.close()

    assert tokens == continuation(FakeModel(), PROMPT, 4, GREEDY)
    assert front.driver.applied == [1, 0, 1]


def test_shutdown_finishes_the_plans_before_it(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.driver.let_steps(2)
    front.send(PlanMessage(seating(1, 2)), Shutdown())

    assert [isinstance(front.receive(), StepDone) for _ in range(2)] == [True, True]
    assert front.ending() is Ending.SHUTDOWN


def test_a_wish_to_stop_ends_the_quantum_after_the_step_at_hand(start: Callable[..., Front]) -> None:
    front = start()
    front.load()
    front.send(PlanMessage(seating(1, 8)))
    front.driver.let_steps(1)
    front.receive()
    front.stop.set()
    front.driver.let_steps(7)
    last = front.receive()

    assert isinstance(last, StepDone)
    assert (last.step_idx, last.is_last) == (1, True)
    assert front.ending() is Ending.STOPPED


def test_a_wish_to_stop_wakes_an_idle_server(start: Callable[..., Front]) -> None:
    front = start()
    front.stop.set()

    assert front.ending() is Ending.STOPPED


def test_slabs_that_were_given_back_are_here_again_for_the_next_front(start: Callable[..., Front]) -> None:
    front = start()
    front.send(ShiftSlabs(7, gives=(1, 2)), ShiftSlabs(8, takes=(2,)), ShiftSlabs(9, takes=(2,)))
    answers = [front.receive() for _ in range(3)]
    assert answers[:2] == [SlabsShifted(7), SlabsShifted(8)]
    assert isinstance(answers[2], Failed)
    assert front.held.away == {1}
    front.hang_up()
    front.ending()

    second = Front(front.held, front.driver, front.path, GENERATION + 1)
    second.send(ShiftSlabs(1, gives=(1, 2)))
    assert second.receive() == SlabsShifted(1)
    second.close()
