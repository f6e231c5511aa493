"""A hostile world: disks that fill up, files that rot, workers that hang and die. The daemon says what is wrong and loses nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import socket
import sqlite3
import struct
import threading
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from drivers.contract import Sampling
from drivers.fake_model import FakeModel, continuation
from kerneld_client import Client, Context, errors
from tests.e2e.rig import FAKE, MODEL, DaemonRig, fake_model, script, until

PROMPT = [11, 12, 13, 14, 15]
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[DaemonRig]:
    """A daemon on the fake driver, not started."""
    own = DaemonRig(tmp_path, *FAKE)
    yield own
    own.clean_up()


def expected(num_tokens: int) -> tuple[int, ...]:
    """What the toy model goes on with after the prompt, whatever happens on the way."""
    return tuple(continuation(FakeModel(), PROMPT, num_tokens, GREEDY))


def tokens_of(context: Context, num_tokens: int) -> tuple[int, ...]:
    """A greedy continuation of the prompt."""
    return context.infer(tokens=PROMPT, max_tokens=num_tokens, temperature=0, ignore_eos=True).result().tokens


def load(rig: DaemonRig) -> Client:
    """A client with the toy model loaded."""
    client = rig.connect()
    path = rig.folder / "toy"
    client.load(path if path.exists() else fake_model(rig.folder), name="toy")
    return client


# ------------------------------------------------------------------------------------------------------------------------- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    path = tmp_path / "state"
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, b"size=3m,mode=0700") != 0:
        pytest.skip(f"a small disk cannot be mounted here: {errno.errorcode[ctypes.get_errno()]}")
    yield path
    libc.umount2(os.fsencode(path), 2)


def fill(path: Path) -> Path:
    """Take the last byte of a file system; returns the file that has it."""
    ballast = path / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (1 << 16, 1 << 12, 1):
            with pytest.raises(OSError, match="No space left"):
                stream.writelines(repeat(bytes(size)))
    return ballast


def test_a_full_disk_refuses_admission_and_nothing_else(small_disk: Path, tmp_path: Path) -> None:
    rig = DaemonRig(tmp_path, *FAKE, script(step_s=0.02), "kerneld.disk_reserve_bytes=64KiB")
    rig.start()
    try:
        with load(rig) as k:
            kept = k.alloc("toy")
            spare = k.alloc("toy")
            before = tokens_of(kept, 20)
            running = k.alloc("toy")
            stream = running.infer(tokens=PROMPT, max_tokens=60, temperature=0, ignore_eos=True)
            first = next(stream)
            ballast = fill(small_disk)
            refusals = []
            begins = (lambda: k.alloc("toy"), lambda: tokens_of(spare, 200), kept.fork, kept.checkpoint, lambda: k.add_tenant("late"))
            for begin in begins:
                with pytest.raises(errors.KerneldError) as refusal:
                    begin()
                refusals.append(refusal.value)
            assert {refusal.code.name for refusal in refusals} == {"RESOURCE_EXHAUSTED"}, refusals
            assert all("full" in str(refusal) and "are free" in str(refusal) for refusal in refusals), refusals
            spare.free()
            assert (*first.tokens, *stream.result().tokens[len(first.tokens) :]) == expected(60)
            ballast.unlink()
            fresh = k.alloc("toy")
            assert tokens_of(fresh, 20) == before
            k.add_tenant("late")
            rig.kill()
            rig.start()
            assert k.context(kept.id).read(len(PROMPT)).tokens == before
            assert k.context(running.id).read(len(PROMPT)).tokens == expected(60)
            assert "late" in {tenant.path for tenant in k.tenants()}
    finally:
        rig.clean_up()


def test_no_work_is_admitted_below_the_reserve(tmp_path: Path) -> None:
    rig = DaemonRig(tmp_path, *FAKE, "kerneld.disk_reserve_bytes=900TiB")
    rig.start()
    try:
        with load(rig) as k, pytest.raises(errors.KerneldError) as refusal:
            k.alloc("toy")
    finally:
        rig.clean_up()
    assert refusal.value.code.name == "RESOURCE_EXHAUSTED"
    assert refusal.value.reason == "DISK_FULL"
    assert "disk_reserve_bytes" in str(refusal.value)


def test_a_read_only_state_directory_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(state), b"tmpfs", 1, b"size=1m") != 0:  # MS_RDONLY
        pytest.skip(f"a read-only disk cannot be mounted here: {errno.errorcode[ctypes.get_errno()]}")
    rig = DaemonRig(tmp_path, *FAKE)
    try:
        code, said = rig.refused()
    finally:
        rig.clean_up()
        libc.umount2(os.fsencode(state), 2)
    assert code == 1
    assert f"{state} cannot be written" in said
    assert "Traceback" not in said


def test_a_state_directory_that_is_a_file_is_named(rig: DaemonRig) -> None:
    rig.state.write_text("not a folder")
    code, said = rig.refused()
    assert code == 1
    assert str(rig.state) in said
    assert "Traceback" not in said
    assert rig.state.read_text() == "not a folder"


# ------------------------------------------------------------------------------------------------------------------- files that rot


def spoil(path: Path, offset: int) -> bytes:
    """Flip a bit; returns what the file holds then."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x40
    path.write_bytes(content)
    return bytes(content)


def run_once(rig: DaemonRig) -> str:
    """A daemon that did something and was killed; returns the id of a context with forty tokens."""
    rig.start()
    with load(rig) as k:
        context = k.alloc("toy")
        tokens_of(context, 40)
    rig.kill()
    return context.id


def journal_of(rig: DaemonRig) -> Path:
    """The segment that has the records."""
    return max((rig.state / "journal").glob("*.log"), key=lambda path: len(path.read_bytes().rstrip(b"\0")))


@pytest.mark.parametrize("damage", ["page", "truncated", "header"])
def test_a_damaged_database_stops_the_start_and_is_left_alone(rig: DaemonRig, damage: str) -> None:
    run_once(rig)
    database = rig.state / "kerneld.db"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = database.read_bytes()
    if damage == "page":
        content = content[:8192] + b"\xa5" * 4096 + content[12288:]
    elif damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content = b"garbage!" * 16 + content[128:]
    database.write_bytes(content)
    code, said = rig.refused()
    assert code == 1
    assert f"{database} is damaged" in said
    assert "Traceback" not in said
    assert database.read_bytes() == content


def test_a_journal_without_its_database_stops_the_start(rig: DaemonRig) -> None:
    run_once(rig)
    (rig.state / "kerneld.db").unlink()
    code, said = rig.refused()
    assert code == 1
    assert "has a journal but no database" in said


def test_a_flipped_bit_in_the_journal_stops_the_start_and_is_named(rig: DaemonRig) -> None:
    run_once(rig)
    segment = journal_of(rig)
    content = spoil(segment, len(segment.read_bytes().rstrip(b"\0")) // 2)
    code, said = rig.refused()
    assert code == 1
    assert segment.name in said
    assert "Traceback" not in said
    assert segment.read_bytes() == content


def test_a_torn_tail_of_the_journal_is_cut_off(rig: DaemonRig) -> None:
    context_id = run_once(rig)
    segment = journal_of(rig)
    used = len(segment.read_bytes().rstrip(b"\0"))
    with segment.open("r+b") as stream:
        stream.truncate(used - 5)
    rig.start()
    with rig.connect() as k:
        context = k.context(context_id)
        assert context.read(len(PROMPT)).tokens == expected(40)[: context.stat().num_tokens - len(PROMPT)]
        assert context.stat().num_tokens >= len(PROMPT) + 30


def test_a_damaged_image_leaves_no_half_restored_context(rig: DaemonRig) -> None:
    rig.start()
    with load(rig) as k:
        context = k.alloc("toy")
        tokens_of(context, 60)
        image = context.checkpoint()
        manifest = next(path for path in (rig.state / "images").rglob(f"*{image.id}*") if path.is_file())
        spoil(manifest, 100)
        with pytest.raises(errors.KerneldError) as refusal:
            k.restore(image)
        assert refusal.value.code.name == "DATA_LOSS"
        assert [found.id for found in k.contexts()] == [context.id]


@pytest.mark.parametrize(
    ("text", "part"), [("memory = 3", "memory"), ("[memory", "not TOML"), ("[memory]\nsize = 4", "size"), ("\x00\xff", "not TOML")]
)
def test_garbage_in_the_configuration_is_an_error_with_its_place(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "kerneld.toml"
    file.write_bytes(text.encode("latin-1"))
    rig = DaemonRig(tmp_path)
    rig.arguments = (f"--config={file}",)
    code, said = rig.refused()
    assert code == 2
    assert str(file) in said
    assert part in said
    assert "Traceback" not in said


# ------------------------------------------------------------------------------------------------------------------------- models


def test_a_model_whose_files_went_missing_fails_by_name_and_the_daemon_lives(rig: DaemonRig) -> None:
    rig.start()
    with load(rig) as k:
        other = fake_model(rig.folder, "other", seed=7)
        k.load(other, name="other")
        context = k.alloc("other")
        tokens_of(context, 5)
        kept = k.alloc("toy")
        rig.kill()
        shutil.rmtree(other)
        rig.start()
        until(lambda: k.model("toy").state == "resident")
        assert tokens_of(kept, 10) == expected(10)
        with pytest.raises(errors.KerneldError) as refusal:
            tokens_of(k.context(context.id), 5)
        assert refusal.value.code.name == "FAILED_PRECONDITION"
        assert k.context(context.id).read(len(PROMPT)).num_tokens == len(PROMPT) + 5
        assert k.model("other").state == "failed"
        assert str(other) in k.model("other").failure


def test_a_model_whose_weights_were_changed_is_another_model(rig: DaemonRig) -> None:
    rig.start()
    with load(rig) as k:
        context = k.alloc("toy")
        before = tokens_of(context, 10)
        rig.kill()
        (rig.folder / "toy" / "fake.json").write_text('{"seed": 99}')
        rig.start()
        with pytest.raises(errors.KerneldError) as refusal:
            k.context(context.id).infer(max_tokens=5).result()
        assert refusal.value.code.name == "FAILED_PRECONDITION"
        assert "changed" in str(refusal.value)
        assert k.context(context.id).read(len(PROMPT)).tokens == before


def test_real_weights_that_rot_after_registration_are_refused_by_name(tmp_path: Path) -> None:
    model = tmp_path / "rotten"
    shutil.copytree(MODEL, model, ignore=shutil.ignore_patterns("*.py", "__pycache__", "*.png"))
    rig = DaemonRig(tmp_path, "memory.device_bytes=64MiB", "memory.host_bytes=8MiB", "drivers.threads=1")
    rig.start()
    try:
        with rig.connect() as k:
            k.register(model, name="rotten")
            weights = model / "model.safetensors"
            content = weights.read_bytes()
            weights.write_bytes(struct.pack("<Q", 1 << 60) + content[8:])
            with pytest.raises(errors.KerneldError) as refusal:
                k.load(model, name="rotten")
            assert refusal.value.code.name == "FAILED_PRECONDITION"
            assert "model.safetensors" in str(refusal.value)
            assert k.top().workers[0].restarts == 0
            weights.unlink()
            with pytest.raises(errors.KerneldError) as refusal:
                k.load(model, name="rotten")
            assert refusal.value.code.name == "FAILED_PRECONDITION"
            weights.write_bytes(content)
            assert k.load(model, name="rotten").state == "resident"
    finally:
        rig.clean_up()


# ------------------------------------------------------------------------------------------------------------------------- workers


def in_background(context: Context, num_tokens: int) -> tuple[threading.Thread, list[int]]:
    """Let a context generate in a thread."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(tokens_of(context, num_tokens)), daemon=True)
    thread.start()
    return thread, found


def test_a_hung_worker_is_killed_and_its_streams_go_on(tmp_path: Path) -> None:
    rig = DaemonRig(tmp_path, *FAKE, script(step_s=0.02), "kerneld.step_deadline_floor_s=0.3", "kerneld.step_deadline_factor=1")
    rig.start()
    try:
        with load(rig) as k:
            contexts = [k.alloc("toy") for _ in range(4)]
            runs = [in_background(context, 60) for context in contexts]
            until(lambda: k.top().running == 4)
            hung = rig.signal_worker(k, signal.SIGSTOP)
            for thread, tokens in runs:
                thread.join(timeout=60)
                assert tuple(tokens) == expected(60)
            assert rig.worker_pid(k) != hung
            assert k.top().workers[0].restarts == 1
            assert not Path(f"/proc/{hung}").exists()
    finally:
        rig.clean_up()


def test_a_worker_that_dies_again_and_again_comes_back(tmp_path: Path) -> None:
    rig = DaemonRig(tmp_path, *FAKE, script(step_s=0.02))
    rig.start()
    try:
        with load(rig) as k:
            context = k.alloc("toy")
            for _ in range(2):
                thread, tokens = in_background(context, 20)
                until(lambda: k.top().running == 1)
                rig.kill_worker(k)
                thread.join(timeout=60)
                assert tuple(tokens) == expected(20)
                context.truncate(0)
            assert k.top().workers[0].restarts == 2
    finally:
        rig.clean_up()


def test_a_worker_that_dies_before_it_reports_is_replaced_at_once(rig: DaemonRig) -> None:
    rig.start()
    with load(rig) as k:
        worker = rig.signal_worker(k, signal.SIGKILL)
        os.kill(rig.next_worker(worker), signal.SIGKILL)
        assert tokens_of(k.alloc("toy"), 10) == expected(10)
        assert k.top().workers[0].restarts == 2


def test_garbage_on_the_worker_socket_is_turned_away(rig: DaemonRig) -> None:
    rig.start()
    with load(rig) as k:
        worker = rig.worker_pid(k)
        for garbage in (b"", b"\xff" * 4096, struct.pack("<I", 1 << 31), struct.pack("<I", 5) + b"\xc1\xc1\xc1\xc1\xc1"):
            with socket.socket(socket.AF_UNIX) as intruder:
                intruder.connect(str(rig.folder / "worker.sock"))
                intruder.sendall(garbage)
        assert tokens_of(k.alloc("toy"), 10) == expected(10)
        assert rig.worker_pid(k) == worker


def test_a_second_daemon_on_the_same_socket_is_refused_and_the_first_goes_on(rig: DaemonRig, tmp_path: Path) -> None:
    rig.start()
    with load(rig) as k:
        worker = rig.worker_pid(k)
        other = DaemonRig(tmp_path, *FAKE)
        other.state, other.log = tmp_path / "other-state", tmp_path / "other.log"
        code, said = other.refused()
        assert code == 1
        assert "listens on" in said
        assert "Traceback" not in said
        assert tokens_of(k.alloc("toy"), 10) == expected(10)
        assert rig.worker_pid(k) == worker
    with rig.connect() as again:
        assert again.whoami().roles
