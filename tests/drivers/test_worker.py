"""Real worker processes, started by exec, and the front's side of them: handshake, death, orphans, shutdown."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop

from drivers.client import WorkerClient
from drivers.contract import InspectSpec, LoadSpec, OpenSpec, Plan, RowRun, RowStart, Sampling, StepResult
from drivers.errors import DeviceLost, DeviceOutOfMemory, DriverError, DriverUnavailable, OptionUnknown, UnknownModel
from drivers.fake_model import FakeModel, continuation
from drivers.hostmem import HostMemory
from drivers.listener import Admission, WorkerListener
from drivers.wire import NO_STEP, Hello, PlanFailed
from drivers.worker import JsonFormatter, LineFormatter, parse
from memory.page import Move, Tier

ROOT = Path(__file__).resolve().parents[2]
GRANULE = 4096
HOST_BYTES = 64 * GRANULE
MEMORY = OpenSpec(4, 1 << 18, GRANULE, 16, 8, 64, host_bytes=HOST_BYTES)
GREEDY = Sampling(temperature=0.0)
PROMPT = (5, 6, 7)
KEY = b"0123456789abcdef"
WAIT_S = 30.0

Tell = Callable[[Awaitable[None]], None]


class Desk:
    """A front's reception: admits every worker with the memory it was told to give, and keeps what comes."""

    def __init__(self, memory: OpenSpec, generation: int = 1, refusal: DriverError | None = None) -> None:
        self.memory = memory
        self.generation = generation
        self.refusal = refusal
        self.host: HostMemory | None = None
        self.hellos: list[Hello] = []
        self.arrivals: asyncio.Queue[WorkerClient | DriverError] = asyncio.Queue()

    def admit(self, hello: Hello, host_fd: int | None) -> Admission:
        self.hellos.append(hello)
        if self.refusal is not None:
            raise self.refusal
        if host_fd is not None:
            self.host = HostMemory(host_fd, HOST_BYTES, GRANULE)
            return Admission(self.generation, self.memory)
        self.host = HostMemory.create(HOST_BYTES, GRANULE)
        return Admission(self.generation, self.memory, self.host.fd)

    def ready(self, worker: WorkerClient) -> None:
        self.arrivals.put_nowait(worker)

    def failed(self, hello: Hello, error: DriverError) -> None:
        self.arrivals.put_nowait(error)

    async def worker(self) -> WorkerClient:
        arrival = await asyncio.wait_for(self.arrivals.get(), WAIT_S)
        assert isinstance(arrival, WorkerClient)
        return arrival

    async def failure(self) -> DriverError:
        arrival = await asyncio.wait_for(self.arrivals.get(), WAIT_S)
        assert isinstance(arrival, DriverError)
        return arrival

    def close(self) -> None:
        if self.host is not None:
            self.host.close()


class Ear:
    """Hears what a device does."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[tuple[int, int, bool, StepResult]] = asyncio.Queue()
        self.failures: asyncio.Queue[PlanFailed] = asyncio.Queue()
        self.losses: asyncio.Queue[str] = asyncio.Queue()

    def on_step(self, plan_seq: int, step_idx: int, is_last: bool, result: StepResult) -> None:
        self.steps.put_nowait((plan_seq, step_idx, is_last, result))

    def on_plan_failed(self, failed: PlanFailed) -> None:
        self.failures.put_nowait(failed)

    def on_lost(self, reason: str) -> None:
        self.losses.put_nowait(reason)

    async def step(self) -> tuple[int, int, bool, StepResult]:
        return await asyncio.wait_for(self.steps.get(), WAIT_S)

    async def loss(self) -> str:
        return await asyncio.wait_for(self.losses.get(), WAIT_S)


class Yard:
    """Starts fronts and workers, and clears away every one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket_path = folder / "workers.sock"
        self.processes: list[subprocess.Popen[str]] = []
        self.desks: list[Desk] = []

    def worker(self, driver: str = "fake", grace_s: float = WAIT_S, secret: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", "drivers.worker", "--socket", str(self.socket_path), "--device", "d0"]
        process = subprocess.Popen(
            [*command, "--driver", driver, "--orphan-grace-s", str(grace_s)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "KERNELD_WORKER_SECRET": secret},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def front(self, desk: Desk, secret: str = "") -> WorkerListener:
        self.desks.append(desk)
        listener = WorkerListener(self.socket_path, desk, secret)
        listener.start()
        return listener

    async def pair(self, **options: str) -> tuple[WorkerClient, Ear, subprocess.Popen[str]]:
        """A front with one worker."""
        desk = Desk(msgspec.structs.replace(MEMORY, options=options))
        listener = self.front(desk)
        process = self.worker()
        client = await desk.worker()
        ear = Ear()
        client.attach(ear)
        await listener.close()
        return client, ear, process

    def load_spec(self, model_id: int = 1) -> LoadSpec:
        offsets = tuple((16 * model_id + 4 * idx) * GRANULE for idx in range(4))
        return LoadSpec(model_id, InspectSpec(str(self.folder)), (10 * model_id,), offsets)

    def clear(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
        for desk in self.desks:
            desk.close()


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path)
    yield yard
    yard.clear()


@pytest.fixture(params=["asyncio", "uvloop"])
def tell(request: pytest.FixtureRequest) -> Tell:
    """Runs a story on a loop of either kind."""

    async def story(awaitable: Awaitable[None]) -> None:
        await awaitable

    def run(awaitable: Awaitable[None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(story(awaitable))

    return run


def ignore(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def seating(seq: int, num_steps: int, generation: int = 1) -> Plan:
    start = RowStart(0, 1, 0, PROMPT, ((100, 101),), GREEDY)
    return Plan(generation, seq, starts=(start,), runs=(RowRun(0, len(PROMPT)),), num_steps=num_steps)


async def tokens_of(ear: Ear, count: int) -> list[int]:
    return [token for _ in range(count) for row in (await ear.step())[3].rows for token in row.tokens]


def test_a_worker_loads_a_model_and_runs_plans(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, _ = await yard.pair()
        told: list[tuple[int, int]] = []
        model = await client.inspect(InspectSpec(str(yard.folder)))
        loaded = await client.load(yard.load_spec(), lambda done, total: told.append((done, total)), "weights")
        client.submit(seating(1, 4))
        tokens = await tokens_of(ear, 4)
        client.submit(Plan(1, 2, clears=(0,)))

        assert client.capabilities.driver == "fake"
        assert model.vocab_size == FakeModel().vocab_size
        assert told[-1] == (loaded.bytes_loaded, loaded.bytes_loaded)
        assert tokens == continuation(FakeModel(), PROMPT, 4, GREEDY)
        assert (await ear.step())[:3] == (2, NO_STEP, True)
        await client.unload(1)
        with pytest.raises(UnknownModel):
            await client.unload(1)
        await client.shut_down(WAIT_S)

    tell(story())
    assert yard.processes[0].wait(WAIT_S) == 0


def test_a_cut_reaches_a_running_quantum(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, _ = await yard.pair(step_s="0.002")
        await client.load(yard.load_spec(), ignore)
        client.submit(seating(1, 28))
        await ear.step()
        client.cut(1, NO_STEP)
        while not (step := await ear.step())[2]:
            pass

        assert step[1] < 27
        client.hang_up()

    tell(story())


def test_kill_9_is_told_once_and_fails_every_pending_call(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, process = await yard.pair(slow_load_s="60")
        loads = [asyncio.ensure_future(client.load(yard.load_spec(), ignore)) for _ in range(2)]
        calls = [*loads, asyncio.ensure_future(client.inspect(InspectSpec(str(yard.folder))))]
        await asyncio.sleep(0)
        process.kill()
        await ear.loss()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        process.wait()
        await asyncio.sleep(0)

        assert [type(answer) for answer in answers] == [DeviceLost] * 3
        assert ear.losses.empty()
        with pytest.raises(DeviceLost):
            client.submit(Plan(1, 1))
        with pytest.raises(DeviceLost):
            await client.unload(1)

    tell(story())


def test_steps_sent_before_a_death_are_heard_before_it(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, _ = await yard.pair(die_at_step="3")
        await client.load(yard.load_spec(), ignore)
        client.submit(seating(1, 8))
        await ear.loss()

        assert [ear.steps.get_nowait()[1] for _ in range(2)] == [0, 1]
        assert ear.steps.empty()

    tell(story())


def test_a_death_is_seen_although_another_process_holds_the_socket(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, process = await yard.pair()
        pidfd = os.pidfd_open(process.pid)
        descriptors = [int(name) for name in os.listdir(f"/proc/{process.pid}/fd")]
        sockets = [fd for fd in descriptors if stat.S_ISSOCK(os.stat(f"/proc/{process.pid}/fd/{fd}").st_mode)]
        copies = [copy_descriptor(pidfd, fd) for fd in sockets]
        process.kill()

        assert await ear.loss() == "The worker process ended."
        for fd in (pidfd, *copies):
            os.close(fd)
        assert client.hello.pid == process.pid

    tell(story())


def test_a_hung_worker_is_killed_with_the_reason_given(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, process = await yard.pair(hang_at_step="1")
        await client.load(yard.load_spec(), ignore)
        client.submit(seating(1, 1))
        client.kill("It missed its deadline.")

        assert await ear.loss() == "It missed its deadline."
        assert process.wait(WAIT_S) == -signal.SIGKILL

    tell(story())


def test_a_worker_that_does_not_shut_down_in_time_is_killed(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, process = await yard.pair(hang_at_step="1")
        await client.load(yard.load_spec(), ignore)
        client.submit(seating(1, 1))
        await client.shut_down(timeout_s=0.02)

        assert await ear.loss() == "It was shut down."
        assert process.wait(WAIT_S) == -signal.SIGKILL
        client.kill("It is gone already.")

    tell(story())


def test_a_driver_that_breaks_ends_its_worker_with_an_error(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, process = await yard.pair(error_token="6")
        await client.load(yard.load_spec(), ignore)
        client.submit(seating(1, 1))

        assert "Token 6 was computed" in await ear.loss()
        assert process.wait(WAIT_S) == 1

    tell(story())


def test_an_error_of_the_driver_arrives_as_itself(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, _, _ = await yard.pair(oom_at_load="1")
        with pytest.raises(DeviceOutOfMemory) as caught:
            await client.load(yard.load_spec(), ignore)
        assert caught.value.needed_bytes == 16384
        client.hang_up()

    tell(story())


def test_pages_travel_through_the_host_tier_that_both_sides_map(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, _ = await yard.pair(corrupt_host_copy="2")
        await client.load(yard.load_spec(), ignore)
        host = yard.desks[0].host
        assert host is not None
        out = Move(10, Tier.DEVICE, 100, Tier.HOST, 8, KEY, 16)
        client.submit(Plan(1, 1, moves=(out, out._replace(target_frame=12))))
        await ear.step()
        back = Move(10, Tier.HOST, 8, Tier.DEVICE, 110, KEY, 16)
        client.submit(Plan(1, 2, moves=(back, back._replace(source_frame=12, target_frame=111))))
        failed = await asyncio.wait_for(ear.failures.get(), WAIT_S)

        assert [frame for frame, _ in host.scan()] == [8, 12]
        assert (failed.plan_seq, failed.bad_move_idxs, failed.abort_count) == (2, (1,), 1)
        client.hang_up()

    tell(story())


def test_an_orphan_keeps_models_and_host_tier_for_the_next_front(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, process = await yard.pair()
        await client.load(yard.load_spec(), ignore, "sha256:weights")
        client.submit(Plan(1, 1, moves=(Move(10, Tier.DEVICE, 100, Tier.HOST, 8, KEY, 16),)))
        await ear.step()
        client.submit(seating(2, 2))
        await tokens_of(ear, 2)
        client.hang_up()

        heir = Desk(MEMORY, generation=2)
        listener = yard.front(heir)
        again = await heir.worker()
        second_ear = Ear()
        again.attach(second_ear)
        again.submit(seating(1, 4, generation=2))  # the slot is free again, the weights are where they were
        tokens = await tokens_of(second_ear, 4)

        assert [(held.weights_key, held.spec) for held in again.models] == [("sha256:weights", yard.load_spec())]
        assert (heir.hellos[0].boot_generation, heir.hellos[0].opened) == (1, MEMORY)
        assert heir.host is not None
        assert [header.key for _, header in heir.host.scan()] == [KEY]
        assert tokens == continuation(FakeModel(), PROMPT, 4, GREEDY)
        assert again.hello.pid == process.pid
        await listener.close()
        await again.shut_down(WAIT_S)

    tell(story())


def test_an_orphan_asked_for_other_memory_opens_anew_and_keeps_the_host_tier(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, _, _ = await yard.pair()
        await client.load(yard.load_spec(), ignore)
        client.hang_up()
        heir = Desk(msgspec.structs.replace(MEMORY, max_rows=4), generation=2)
        listener = yard.front(heir)
        again = await heir.worker()

        assert again.models == ()
        await again.load(yard.load_spec(), ignore)
        await listener.close()
        again.hang_up()

    tell(story())


def test_a_load_that_ends_while_no_front_is_there_is_told_to_the_next(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, _, _ = await yard.pair(slow_load_s="0.2")
        begun = asyncio.Event()
        call = asyncio.ensure_future(client.load(yard.load_spec(), lambda done, total: begun.set(), "w"))
        await begun.wait()
        client.hang_up()
        heir = Desk(msgspec.structs.replace(MEMORY, options={"slow_load_s": "0.2"}), generation=2)
        listener = yard.front(heir)
        again = await heir.worker()

        assert [held.weights_key for held in again.models] == ["w"]
        with pytest.raises(DeviceLost):
            await call
        await listener.close()
        again.hang_up()

    tell(story())


def test_sigterm_ends_an_idle_worker_with_0(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        _, ear, process = await yard.pair()
        process.terminate()

        assert await ear.loss() == "The worker closed its socket."
        assert process.wait(WAIT_S) == 0

    tell(story())


def test_sigterm_lets_the_step_at_hand_finish(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, process = await yard.pair(step_s="0.01")
        await client.load(yard.load_spec(), ignore)
        client.submit(seating(1, 28))
        await ear.step()
        process.terminate()
        while not (step := await ear.step())[2]:
            pass

        assert step[1] < 27
        assert process.wait(WAIT_S) == 0

    tell(story())


def test_sigterm_does_not_wait_for_a_load(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, ear, process = await yard.pair(slow_load_s="600")
        call = asyncio.ensure_future(client.load(yard.load_spec(), ignore))
        await asyncio.sleep(0)
        process.terminate()
        await ear.loss()

        assert process.wait(WAIT_S) == 0
        with pytest.raises(DeviceLost):
            await call

    tell(story())


def test_an_orphan_gives_up_after_its_grace(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        desk = Desk(MEMORY)
        listener = yard.front(desk)
        process = yard.worker(grace_s=0.05)
        client = await desk.worker()
        await listener.close()
        client.hang_up()

        assert process.wait(WAIT_S) == 0

    tell(story())


@pytest.mark.parametrize(("driver", "code", "line"), [("fake", 1, "no front came"), ("tpu", 3, "'tpu' is none of: cpu, cuda, fake")])
def test_a_worker_that_never_served_says_why(yard: Yard, driver: str, code: int, line: str) -> None:
    process = yard.worker(driver, grace_s=0.05)

    _, log = process.communicate(timeout=WAIT_S)

    assert process.returncode == code
    assert line in log


def test_a_refused_worker_exits_for_good(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        listener = yard.front(Desk(MEMORY, refusal=DriverUnavailable("This device is taken.")))
        process = yard.worker()
        code = await asyncio.to_thread(process.wait, WAIT_S)

        assert code == 3
        await listener.close()

    tell(story())
    assert "This device is taken." in yard.processes[0].communicate()[1]


def test_a_worker_without_the_secret_is_refused(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        desk = Desk(MEMORY)
        listener = yard.front(desk, secret="swordfish")
        stranger = yard.worker(secret="guess")
        assert await asyncio.to_thread(stranger.wait, WAIT_S) == 3
        yard.worker(secret="swordfish")
        client = await desk.worker()

        assert len(desk.hellos) == 1
        await listener.close()
        client.hang_up()

    tell(story())


def test_a_driver_that_cannot_open_is_told_to_the_front(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        desk = Desk(msgspec.structs.replace(MEMORY, options={"no_such_option": "1"}))
        listener = yard.front(desk)
        process = yard.worker()

        assert type(await desk.failure()) is OptionUnknown
        assert await asyncio.to_thread(process.wait, WAIT_S) == 3
        await listener.close()

    tell(story())


def test_strangers_at_the_door_do_not_disturb_it(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        desk = Desk(MEMORY)
        listener = yard.front(desk)
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\x00\x00\xc1"):
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(yard.socket_path))
                stranger.sendall(words)
        yard.worker()
        client = await desk.worker()

        assert len(desk.hellos) == 1
        await listener.close()
        client.hang_up()

    tell(story())


def test_an_older_front_is_not_served(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        desk = Desk(MEMORY, generation=5)
        listener = yard.front(desk)
        process = yard.worker(grace_s=0.3)
        client = await desk.worker()
        desk.generation = 4
        client.hang_up()
        failure = await desk.failure()

        assert type(failure) is DeviceLost
        assert await asyncio.to_thread(process.wait, WAIT_S) == 0
        await listener.close()

    tell(story())


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_listener(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        listener = yard.front(Desk(MEMORY))

        assert stat.S_IMODE(yard.socket_path.stat().st_mode) == 0o600
        await listener.close()
        assert not yard.socket_path.exists()

    tell(story())


def test_a_socket_left_behind_is_replaced_and_a_living_one_is_not(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(yard.socket_path))
        listener = yard.front(Desk(MEMORY))
        with pytest.raises(FileExistsError, match="another process listens"):
            yard.front(Desk(MEMORY))
        await listener.close()

    tell(story())


def test_a_file_in_the_way_is_left_alone(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        yard.socket_path.write_text("mine")
        with pytest.raises(FileExistsError, match="no socket"):
            yard.front(Desk(MEMORY))

    tell(story())
    assert yard.socket_path.read_text() == "mine"


def test_a_worker_dies_before_its_front_when_memory_is_short(yard: Yard, tell: Tell) -> None:
    async def story() -> None:
        client, _, process = await yard.pair()

        assert int(Path(f"/proc/{process.pid}/oom_score_adj").read_text()) > int(Path("/proc/self/oom_score_adj").read_text())
        client.hang_up()

    tell(story())


def test_a_log_line_ends_with_its_facts_and_a_traceback_follows_it() -> None:
    formatter = LineFormatter("%(levelname)s %(message)s")
    plain = logging.makeLogRecord({"levelname": "INFO", "msg": "Serving", "boot_generation": 2, "models_kept": 0})
    try:
        raise ValueError("inside")
    except ValueError:
        failed = logging.makeLogRecord({"levelname": "ERROR", "msg": "Failed", "error_id": "a b", "exc_info": sys.exc_info()})

    assert formatter.format(plain) == "INFO Serving boot_generation=2 models_kept=0"
    as_json = json.loads(JsonFormatter("cpu0").format(failed))
    assert (as_json["device"], as_json["message"], as_json["error_id"]) == ("cpu0", "Failed", "a b")
    assert "ValueError: inside" in as_json["traceback"]
    assert formatter.format(failed).splitlines()[:2] == ['ERROR Failed error_id="a b"', "Traceback (most recent call last):"]


def copy_descriptor(pidfd: int, fd: int) -> int:
    """A copy of another process's descriptor (pidfd_getfd)."""
    copy: int = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, fd, 0)
    return copy


@pytest.mark.parametrize(
    ("arguments", "driver", "device"),
    [
        (["--driver", "cpu", "--device", "cpu7"], "cpu", "cpu7"),
        (["--instance", "cpu"], "cpu", "cpu0"),
        (["--instance", "cpu:quick"], "cpu", "quick"),
    ],
)
def test_a_unit_names_driver_and_device_in_one_word(arguments: list[str], driver: str, device: str) -> None:
    parsed = parse(["--socket", "w.sock", *arguments])
    assert (parsed.driver, parsed.device) == (driver, device)


def test_a_worker_that_is_not_told_its_device_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--socket", "w.sock", "--driver", "cpu"])
    assert "give --device and --driver, or --instance" in capsys.readouterr().err
