"""The worker's side of the socket: serve one driver to one front.

Threads: the main thread carries out plans and unloads in the order they came, and reads the socket between steps; a side thread inspects,
loads and parks beside it. Both send, under one lock.

Invariants
1. A plan is queued only if it is of this boot generation and of the last abort; at most two are queued or running.
2. Every queued plan is answered by exactly one StepDone with is_last or one PlanFailed, unless an abort before it or the end of serving
   drops it unanswered.
3. Once step s of a cut(after_step=s) is done, no further step of that plan begins.
4. `Held.models` names exactly the models that the driver holds whenever no load is on its way; `Held.slots` the rows that are seated.
5. After an error that is neither a corrupt page nor a refused request, nothing more is carried out: the worker is expendable.
"""

from __future__ import annotations

import enum
import logging
import select
import socket
import threading
import uuid
from collections import deque
from dataclasses import dataclass, field

import msgspec

from drivers.contract import CopyTimes, Driver, OpenSpec, Plan, StepResult
from drivers.errors import DeviceLost, DriverError, PageCorrupt, PlanRejected, WireError
from drivers.failure import describe_error
from drivers.side_thread import SideThread
from drivers.wire import (
    NO_STEP,
    RECEIVE_BYTES,
    Cut,
    Decoder,
    HeldModel,
    Inspect,
    Load,
    Message,
    Park,
    PlanFailed,
    PlanMessage,
    ShiftSlabs,
    Shutdown,
    SlabsShifted,
    StepDone,
    Unload,
    Unloaded,
    encode,
)

logger = logging.getLogger(__name__)

MAX_PLANS = 2
NO_RESULT = StepResult(rows=(), compute_s=0.0, num_tokens=0)


class Ending(enum.Enum):
    """Why serving ended."""

    FRONT_LOST = "front lost"
    GRACE_OVER = "no front came"
    SHUTDOWN = "shutdown"
    STOPPED = "stopped"
    BROKEN = "broken"


class StopFlag:
    """A wish to stop that can be made from a signal handler and waited for in `poll`."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self.is_set = False

    def set(self) -> None:
        """Wish to stop. Safe to call twice."""
        if not self.is_set:
            self.is_set = True
            self._writer.send(b"s")

    def fileno(self) -> int:
        """Readable from the wish on."""
        return self._reader.fileno()

    def close(self) -> None:
        """Give the descriptors back."""
        self._reader.close()
        self._writer.close()


@dataclass(slots=True)
class Held:
    """An open driver and what is in it: this is what a worker keeps while no front is there."""

    driver: Driver
    spec: OpenSpec
    copies: CopyTimes = field(default_factory=CopyTimes)  # measured at open
    models: dict[int, HeldModel] = field(default_factory=dict)
    slots: set[int] = field(default_factory=set)
    away: set[int] = field(default_factory=set)  # slabs that were given back


class Server:
    """Serves one open driver to one connected front until either goes."""

    def __init__(self, sock: socket.socket, decoder: Decoder, held: Held, boot_generation: int, stop: StopFlag) -> None:
        """Take over a socket after its handshake, with the decoder that may hold the first bytes behind it."""
        self._sock = sock
        self._decoder = decoder
        self._held = held
        self._boot_generation = boot_generation
        self._stop = stop
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(stop, select.POLLIN)
        self._send_lock = threading.Lock()
        self._work: deque[Plan | Unload | ShiftSlabs | Shutdown] = deque()
        self._cuts: dict[int, int] = {}
        self._abort_count = 0
        self._last_seq = -1
        self._is_running = False
        self.side = SideThread(held.driver, held.models, self._send)

    def serve(self) -> Ending:
        """Serve until the front goes, says Shutdown, the stop flag is set, or the driver breaks; the driver stays open."""
        try:
            return self._serve()
        except (ConnectionError, WireError) as error:
            logger.warning("Front lost", extra={"reason": str(error)})
            return Ending.FRONT_LOST
        except Exception as error:  # noqa: BLE001 - worker loop top: log, tell the front, end the worker (invariant 5)
            self._give_up(error)
            return Ending.BROKEN
        finally:
            self.side.finish()

    def forget_rows(self) -> None:
        """Clear every row that an earlier front left seated. Raises: what Driver.apply raises."""
        if self._held.slots:
            self._held.driver.apply(Plan(self._boot_generation, seq=0, clears=tuple(sorted(self._held.slots))))
            self._held.slots.clear()

    def _serve(self) -> Ending:
        self.forget_rows()
        if self._held.away:  # a new front counts on all slabs
            self._held.driver.take(tuple(self._held.away))
            self._held.away.clear()
        while True:
            self._receive(may_wait=not self._work)
            if self._stop.is_set:
                return Ending.STOPPED
            if not self._work:
                continue
            item = self._work.popleft()
            if isinstance(item, Shutdown):
                return Ending.SHUTDOWN
            if isinstance(item, Unload):
                self._unload(item)
            elif isinstance(item, ShiftSlabs):
                self._shift(item)
            else:
                self._run(item)

    def _receive(self, may_wait: bool) -> None:
        """Take in what has come; with `may_wait`, wait for something. Raises: ConnectionError, WireError, PlanRejected."""
        ready = dict(self._poll.poll(None if may_wait else 0))
        if self._sock.fileno() not in ready:
            return
        chunk = self._sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
        if not chunk:
            raise ConnectionResetError("end of stream")
        for message in self._decoder.feed(chunk):
            self._accept(message)

    def _accept(self, message: Message) -> None:
        if isinstance(message, PlanMessage):
            self._queue(message.plan)
        elif isinstance(message, Cut):
            self._cuts[message.plan_seq] = message.after_step
        elif isinstance(message, Load | Inspect | Park):
            self.side.submit(message)
        elif isinstance(message, Unload | ShiftSlabs | Shutdown):
            self._work.append(message)
        else:
            raise WireError(f"A {type(message).__name__} has no place after the handshake.")

    def _queue(self, plan: Plan) -> None:
        if plan.boot_generation != self._boot_generation or plan.abort_count < self._abort_count:
            return  # invariant 1
        if plan.seq <= self._last_seq:
            raise PlanRejected(f"Plan {plan.seq} came after plan {self._last_seq}.")
        num_plans = sum(isinstance(item, Plan) for item in self._work) + self._is_running
        if num_plans >= MAX_PLANS:
            raise PlanRejected(f"Plan {plan.seq} came while {num_plans} plans were unanswered.")
        self._abort_count = plan.abort_count
        self._last_seq = plan.seq
        self._work.append(plan)

    def _run(self, plan: Plan) -> None:
        self._is_running = True
        try:
            self._held.driver.apply(plan)
        except PageCorrupt as error:
            self._abort(plan, error)
        else:
            self._held.slots.difference_update(plan.clears)
            self._held.slots.update(start.slot for start in plan.starts)
            self._run_steps(plan)
        self._is_running = False
        self._cuts = {seq: after_step for seq, after_step in self._cuts.items() if seq > plan.seq}

    def _run_steps(self, plan: Plan) -> None:
        step_idx = NO_STEP
        copies = self._held.driver.copied()
        result = msgspec.structs.replace(NO_RESULT, copies=copies)
        is_last = plan.num_steps == 0 or self._is_cut(plan, NO_STEP)
        while not is_last:
            step_idx += 1
            result = self._held.driver.step(step_idx)
            if step_idx == 0:
                result = msgspec.structs.replace(result, copies=copies)
            self._receive(may_wait=False)
            is_last = step_idx + 1 == plan.num_steps or self._is_cut(plan, step_idx) or not _goes_on(result)
            if not is_last:
                self._send(StepDone(plan.seq, step_idx, is_last, result))
        self._send(StepDone(plan.seq, step_idx, is_last, result))

    def _is_cut(self, plan: Plan, step_idx: int) -> bool:
        """Whether no step after `step_idx` may begin (invariant 3). A wish to stop cuts like the front does."""
        return self._stop.is_set or self._cuts.get(plan.seq, plan.num_steps) <= step_idx

    def _abort(self, plan: Plan, error: PageCorrupt) -> None:
        self._abort_count += 1
        self._work = deque(item for item in self._work if not isinstance(item, Plan))  # invariant 1
        logger.warning("Plan aborted", extra={"plan_seq": plan.seq, "num_corrupt": len(error.move_idxs)})
        self._send(PlanFailed(plan.seq, type(error).__name__, str(error), error.move_idxs, self._abort_count))

    def _unload(self, request: Unload) -> None:
        try:
            self._held.driver.unload(request.model_id)
        except DriverError as error:
            self._send(describe_error(request.request_id, error))
            return
        self._held.models.pop(request.model_id, None)
        self._send(Unloaded(request.request_id))

    def _shift(self, request: ShiftSlabs) -> None:
        driver, away = self._held.driver, self._held.away
        try:
            driver.give_back(request.gives)
            away.update(request.gives)
            driver.take(request.takes)
            away.difference_update(request.takes)
        except DriverError as error:
            self._send(describe_error(request.request_id, error))
            return
        self._send(SlabsShifted(request.request_id))

    def _send(self, message: Message) -> None:
        frame = encode(message)
        with self._send_lock:
            self._sock.sendall(frame)

    def _give_up(self, error: Exception) -> None:
        """Log the error in full under an id, and tell the front no more than that."""
        error_id = uuid.uuid4().hex[:12]
        logger.error("Driver failed", extra={"error_id": error_id}, exc_info=error)
        told = error if isinstance(error, DriverError) else DeviceLost(f"{type(error).__name__} in the driver; error id {error_id}.")
        try:
            self._send(describe_error(0, told))
        except OSError as lost:
            logger.warning("Front lost", extra={"reason": str(lost)})


def _goes_on(result: StepResult) -> bool:
    """Whether any row has a token to compute in the next step of the same plan."""
    return any(row.tokens and not row.is_stopped and not row.error for row in result.rows)
