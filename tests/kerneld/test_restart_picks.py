"""A restart is no amnesty, and no punishment: after a death the next picks are those of the run that was never interrupted.

The scheduler, the books and the journal are the daemon's own; the device is a loop that gives every row one token a step. A life plays a
script of operations: arrivals, steps, cancels, preemptions, lost workers, models that come and go, weights, factors, tariffs. A death is a
copy of the journal's bytes between any two writes, or in the middle of one. The next life plays on from the first operation that has left
nothing in the journal.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from drivers.contract import Sampling
from kerneld.accounts import Accounts
from kerneld.bookkeeping import Bookkeeping
from kerneld.calls import Durability, FinishReason, InferArgs, Priority, Usage
from kerneld.context import Context
from kerneld.fairshare import FairShare
from kerneld.policy import SchedulerPolicy
from kerneld.pricing.tariff import Tariff
from kerneld.recovery import stand_again, standings_of
from kerneld.request import Request
from kerneld.scheduler import Scheduler
from kerneld.state.journal import Journal
from kerneld.state.records import Admit, Alloc, Finish, Record, Tokens, pack_tokens
from kerneld.state.replay import LogState
from kerneld.stream import OutputLog
from kerneld.transcript import Transcript
from tests.kerneld.small_disk import full_disk

MACHINE_BOOT = b"b" * 16
MODELS = ("m", "n")
TENANTS = ("lab", "lab/ann", "lab/bob", "lab/group/eve", "lab/group/dan", "other", "other/zoe")
POLICY = SchedulerPolicy(min_service_tokens=2, preempt_lag_us=300, slices_us=(0, 300, 1500), share_cap_us=5000, held_cap_us=4000)
MAX_ROWS = 5
WEIGHTS = {"lab/ann": 3, "lab/group/eve": 2, "other": 5}
LIMITS = {"lab/bob": 1, "other": 3}


@dataclass(frozen=True)
class Arrival:
    """A request that comes in."""

    number: int
    tenant: str
    model: str
    num_input: int
    num_output: int  # tokens after which it ends by itself
    max_tokens: int
    priority: Priority
    nice: int
    defer_until: float

    @property
    def context_id(self) -> bytes:
        return self.number.to_bytes(16, "big")

    @property
    def request_id(self) -> bytes:
        return (self.number + (1 << 64)).to_bytes(16, "big")

    def records(self) -> tuple[Record, ...]:
        """A new context, and the request on it."""
        alloc = Alloc(
            context_id=self.context_id,
            owner="ann",
            tenant=self.tenant,
            model=self.model,
            fingerprint="f",
            max_tokens=0,
            priority=self.priority,
            nice=self.nice,
            durability=Durability.JOURNAL,
            labels={},
            seed=1,
            created_at=0.0,
        )
        admit = Admit(
            context_id=self.context_id,
            request=self.request_id,
            tokens=pack_tokens(range(self.num_input)),
            sampling=Sampling(),
            stop=(),
            max_tokens=self.max_tokens,
            ignore_eos=True,
            deadline_at=0.0,
            arrived_at=float(self.number),
            output_start=self.num_input,
            detach_grace_s=0.0,
        )
        return alloc, admit


@dataclass(frozen=True)
class Op:
    """One operation of a script: what happens, to what."""

    name: str
    arrival: Arrival | None = None
    path: str = ""
    value: int = 0


class Life:
    """One life of the daemon's scheduling half."""

    def __init__(self, folder: Path, script: list[Op], first: int = 0, models: Iterable[str] = MODELS, *, is_cold: bool = False) -> None:
        """Begin at an operation of a script; `models` are on the device then, or, on a cold device, come when requests are back."""
        self.script = script
        self.first = first
        self.picks: list[tuple[int, str]] = []  # (operation, request)
        self.marks: list[tuple[int, int]] = []  # (operation, end of the journal) of every write
        self.journal = Journal(folder, machine_boot=MACHINE_BOOT)
        state = LogState.fold(self.journal.replay())
        shares = FairShare(POLICY.slices_us, POLICY.share_cap_us, POLICY.held_cap_us)
        self.scheduler = Scheduler(shares, POLICY)
        for path in TENANTS:
            shares.add(path, WEIGHTS.get(path, 1))
            self.scheduler.set_max_running(path, LIMITS.get(path, 0))
        for op in script[:first]:  # weights are durable by themselves
            if op.name == "weight":
                shares.set_weight(op.path, op.value)
        self.books = Bookkeeping(self.journal, self.scheduler)
        self.rows: list[Request] = []
        self.requests: dict[str, Request] = {}  # unfinished
        self.arrivals = {op.arrival.request_id.hex(): op.arrival for op in script if op.arrival is not None}
        self._op = first - 1
        self._now = max((float(op.value) for op in script[:first] if op.name == "undefer"), default=0.0)
        self.models: list[frozenset[str]] = []  # on the device, after each operation
        self._loaded = set(models)
        if not is_cold:
            self._load()
        self._recover(state)
        self._load()

    def _load(self) -> None:
        for model in sorted(self._loaded):
            self.scheduler.set_resident(model, True)

    def _recover(self, state: LogState) -> None:
        """As `kerneld.recovery` does it."""
        self.scheduler.restore(state.accounts)
        over = []
        for context_id, standing in standings_of(state):
            admit = state.contexts[context_id].active
            assert admit is not None
            arrival = self.arrivals[admit.request.hex()]
            request = self._request(arrival, len(state.contexts[context_id].output))
            stand_again(request, standing)
            self.requests[request.id] = request
            self.scheduler.recover(request, standing is not None and standing.is_running)
            if self._end_of(request) is not None:
                over.append(request)
        self.scheduler.settle(list(self.requests.values()))
        self.scheduler.undefer(self._now)
        for request in over:
            reason = self._end_of(request)
            assert reason is not None
            self._finish(request, reason)

    # ---------------------------------------------------------------------------------------------------------------------- operations

    def play(self, end: int | None = None) -> None:
        """Play the script on, up to an operation or to its end."""
        for number in range(self._op + 1, len(self.script) if end is None else end):
            self._op, op = number, self.script[number]
            getattr(self, f"_{op.name}")(op)
            self.models.append(frozenset(self._loaded))

    def _arrive(self, op: Op) -> None:
        arrival = op.arrival
        assert arrival is not None
        request = self._request(arrival, 0)
        if arrival.defer_until:
            self.scheduler.defer(request, arrival.defer_until)
            self.books.note(request)
        self._write(*arrival.records())
        self.requests[request.id] = request
        self.scheduler.enqueue(request)

    def _seat(self, op: Op) -> None:
        """Seat who is next; `value` (0 or 1) of those that have no token yet is cancelled."""
        self._fill()
        for request in [row for row in self.rows if not row.num_generated][: op.value]:
            self._finish(request, FinishReason.CANCELLED)

    def _step(self, _op: Op) -> None:
        self._fill()
        sampled = [request for request in self.rows if self._end_of(request) is None]
        for request in sampled:
            request.num_since_admission += 1
        self.scheduler.charge_outputs([(request, 1) for request in sampled])
        if sampled:
            self._write(Tokens(tuple((bytes.fromhex(request.context.id), pack_tokens((7,))) for request in sampled)))
        for request in sampled:
            request.context.tokens.append(7)
        for request in list(self.rows):
            reason = self._end_of(request)
            if reason is not None:
                self._finish(request, reason)

    def _fill(self) -> None:
        """Fill the rows; the winner that finds none free may take one from a tenant that is far ahead."""
        has_preempted = False
        self.scheduler.undefer(self._now)
        while (request := self.scheduler.next_candidate()) is not None:
            if len(self.rows) == MAX_ROWS:
                victim = None if has_preempted else self.scheduler.victim(self.rows, request)
                if victim is None:
                    return
                has_preempted = True
                self.rows.remove(victim)
                victim.num_since_admission = 0
                self.scheduler.preempt(victim)
                self.books.note(victim)
            if not request.is_interrupted:
                self.picks.append((self._op, request.id))
                self.books.note(request)
            if not request.is_charged:
                request.num_cached = request.num_input // 3
            self.scheduler.admit(request, request.num_input // 3)
            self.rows.append(request)

    def _cancel(self, op: Op) -> None:
        request = self.requests.get((op.value + (1 << 64)).to_bytes(16, "big").hex())
        if request is not None:
            self._finish(request, FinishReason.CANCELLED)

    def _lose_worker(self, _op: Op) -> None:
        rows, self.rows = self.rows, []
        for request in rows:
            self.scheduler.interrupt(request)

    def _model(self, op: Op) -> None:
        rows = [request for request in self.requests.values() if request.is_interrupted or request in self.rows]
        if not op.value and any(request.context.model == op.path for request in rows):
            return  # it is in use
        (self._loaded.add if op.value else self._loaded.discard)(op.path)
        self.scheduler.set_resident(op.path, bool(op.value))

    def _weight(self, op: Op) -> None:
        self.scheduler.shares.set_weight(op.path, op.value)

    def _factor(self, op: Op) -> None:
        self.scheduler.shares.set_factor(op.path, op.value)

    def _tariff(self, op: Op) -> None:
        self.scheduler.charging.tariffs.put(op.path, Tariff(1000 * op.value, 100 * op.value, 3000 * op.value, op.value))

    def _undefer(self, op: Op) -> None:
        self._now = max(self._now, float(op.value))

    def _flush(self, _op: Op) -> None:
        self.books.flush()
        self._mark()

    # -------------------------------------------------------------------------------------------------------------------------- inside

    def _request(self, arrival: Arrival, num_output: int) -> Request:
        context = Context(
            id=arrival.context_id.hex(),
            owner="ann",
            tenant=arrival.tenant,
            model=arrival.model,
            fingerprint="f",
            seed=1,
            created_at=0.0,
            priority=arrival.priority,
            nice=arrival.nice,
        )
        context.tokens.extend([7] * (arrival.num_input + num_output))
        log = OutputLog(arrival.num_input, lambda: 0.0)
        return Request(
            id=arrival.request_id.hex(),
            context=context,
            args=InferArgs(context_id=context.id),
            sampling=Sampling(),
            num_input=arrival.num_input,
            output_start=arrival.num_input,
            max_tokens=arrival.max_tokens,
            arrival=float(arrival.number),
            log=log,
            transcript=Transcript(log, None),
        )

    def _end_of(self, request: Request) -> FinishReason | None:
        if request.num_generated >= self.arrivals[request.id].num_output:
            return FinishReason.STOP
        return request.length_reason()

    def _finish(self, request: Request, reason: FinishReason) -> None:
        if request in self.rows:
            self.rows.remove(request)
        del self.requests[request.id]
        self.scheduler.finish(request, reason)
        self.books.forget(request)
        self._write(Finish(bytes.fromhex(request.context.id), bytes.fromhex(request.id), reason, Usage(), "", 0.0))

    def _write(self, *records: Record) -> None:
        self.books.append(records)
        self._mark()

    def _mark(self) -> None:
        self.marks.append((self._op, self.journal._segment.offset))


def script_of(seed: int, num_requests: int) -> list[Op]:
    """A random script: most requests come early, so that tenants compete to the end."""
    rng = random.Random(seed)
    script: list[Op] = []
    arrivals = iter([_arrival(rng, number) for number in range(1, num_requests + 1)])
    num_arrived = 0
    while num_arrived < num_requests:
        if rng.random() < 0.5 or num_arrived < num_requests // 3:
            script.append(Op("arrive", next(arrivals)))
            num_arrived += 1
        else:
            script.append(_other_op(rng, num_arrived))
        script += [Op("step")] * rng.choice((0, 0, 1, 2))
    script += [Op("model", path=model, value=1) for model in MODELS]
    script.append(Op("undefer", value=10 * num_requests))
    return script + [Op("step")] * (6 * num_requests)


def _arrival(rng: random.Random, number: int) -> Arrival:
    num_output = rng.choice((1, 2, 3, 6, 12, 30))
    return Arrival(
        number=number,
        tenant=rng.choice(TENANTS),
        model=rng.choice(MODELS),
        num_input=rng.choice((1, 5, 30, 200)),
        num_output=num_output,
        max_tokens=max(1, num_output + rng.choice((-2, 0, 5))),
        priority=rng.choice(list(Priority)),
        nice=rng.choice((0, 0, 3)),
        defer_until=float(number + rng.randrange(1, 30)) if rng.random() < 0.1 else 0.0,
    )


def _other_op(rng: random.Random, num_arrived: int) -> Op:
    return rng.choice(
        (
            Op("cancel", value=rng.randrange(1, num_arrived + 1)),
            Op("cancel", value=rng.randrange(max(1, num_arrived - 20), num_arrived + 1)),
            Op("seat", value=rng.randrange(2)),
            Op("seat", value=rng.randrange(2)),
            Op("lose_worker"),
            Op("model", path=rng.choice(MODELS), value=rng.randrange(2)),
            Op("weight", path=rng.choice(TENANTS), value=rng.randrange(1, 6)),
            Op("factor", path=rng.choice(TENANTS), value=rng.choice((250, 777, 1000, 4000))),
            Op("tariff", path=rng.choice(MODELS), value=rng.randrange(1, 9)),
            Op("undefer", value=num_arrived),
            Op("flush"),
            Op("step"),
        )
    )


def lived(folder: Path, script: list[Op]) -> Life:
    """The life that nothing interrupts."""
    life = Life(folder, script)
    life.play()
    assert not life.requests, "everything has ended"
    return life


def left_by_death(journal: Path, into: Path, end: int, torn: int) -> None:
    """The journal as a death leaves it: cut off at `end`, and `torn` bytes of the next write behind that."""
    shutil.copytree(journal, into)
    segment = max(into.glob("*.log"))
    content = segment.read_bytes()
    segment.write_bytes(content[: end + torn] + bytes(len(content) - end - torn))


def resumed(folder: Path, first: Life, mark: int, torn_share: float = 0.0, *, is_cold: bool = False) -> Life:
    """The life after a death behind a write of the first one, or within the next."""
    number, end = first.marks[mark]
    following = first.marks[mark + 1][1] if mark + 1 < len(first.marks) else end
    left_by_death(folder / "first", folder / str(mark), end, int((following - end) * torn_share))
    life = Life(folder / str(mark), first.script, number + 1, first.models[number], is_cold=is_cold)
    life.play()
    return life


@pytest.mark.parametrize("seed", range(60))
def test_the_next_picks_are_those_of_the_uninterrupted_run(tmp_path: Path, seed: int) -> None:
    first = lived(tmp_path / "first", script_of(seed, 60))
    rng = random.Random(seed)
    for mark in rng.sample(range(len(first.marks)), 4):
        life = resumed(tmp_path, first, mark, rng.choice((0.0, 0.3, 0.9)), is_cold=rng.random() < 0.5)
        assert life.picks == [pick for pick in first.picks if pick[0] >= life.first]
        assert not life.requests


def test_the_next_thousand_picks_are_those_of_the_uninterrupted_run(tmp_path: Path) -> None:
    first = lived(tmp_path / "first", script_of(1000, 1500))
    life = resumed(tmp_path, first, len(first.marks) // 4)
    expected = [pick for pick in first.picks if pick[0] >= life.first]
    assert len(expected) > 1000
    assert life.picks == expected
    assert life.scheduler.accounts() == first.scheduler.accounts()


def test_books_that_found_the_disk_full_are_written_later_and_nothing_is_lost(tmp_path: Path) -> None:
    first = Life(tmp_path / "first", script_of(7, 60))
    segment = first.journal._segment
    first.journal.reserve(segment.allocated - segment.offset - (64 << 10) - 500)  # room for records, and none for the books
    with full_disk(segment.allocated):
        first.play(80)
        left_by_death(tmp_path / "first", tmp_path / "behind", first.marks[-1][1], 0)
        charged = first.scheduler.accounts()
    first.play()

    assert _service(Life(tmp_path / "behind", first.script, 80).scheduler.accounts()) < _service(charged)
    for mark in [mark for mark, (number, _end) in enumerate(first.marks) if number in (90, 110, 130)]:
        life = resumed(tmp_path, first, mark)
        assert life.picks == [pick for pick in first.picks if pick[0] >= life.first]


def _service(accounts: Accounts) -> int:
    return next(account.service for account in accounts.shares if account.path == "lab")


def test_a_tenant_whose_model_comes_late_keeps_what_it_is_owed(tmp_path: Path) -> None:
    dan, eve = "lab/group/dan", "lab/group/eve"
    rng = random.Random(1)
    arrivals = [replace(_arrival(rng, number), tenant=(dan, eve)[number % 2], model=MODELS[number % 2]) for number in range(1, 21)]
    first = Life(tmp_path / "first", [*(Op("arrive", replace(arrival, defer_until=0.0)) for arrival in arrivals), *[Op("step")] * 9])
    first.play()
    owed = first.scheduler.shares.counters(dan)
    assert first.scheduler.waiting.of(dan)

    left_by_death(tmp_path / "first", tmp_path / "next", first.marks[-1][1], 0)
    life = Life(tmp_path / "next", first.script + [Op("step")] * 5, len(first.script), MODELS[1:])
    life.play()
    assert life.scheduler.shares.lag(eve, dan) > first.scheduler.shares.lag(eve, dan)
    life.scheduler.set_resident(MODELS[0], True)
    assert life.scheduler.shares.counters(dan)[2:] == owed[2:]
